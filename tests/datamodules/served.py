"""A local web server that sends a file, and fails as it is told."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """A file under an address.

    Attributes:
        content: What is sent.
        cuts: After how many bytes the next connections are cut, one after the other; None for not at all.
        knows_ranges: Whether a part of the file can be asked for.
        asked: The ranges that were asked for, in order; None for the whole.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.cuts, self.knows_ranges, self.asked = content, [], True, []
        self.status = 200
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handler(served) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers["Range"]
                served.asked.append(wanted)
                first = int(wanted[6:-1]) if wanted and served.knows_ranges else 0
                whole = len(served.content)
                if served.status != 200 or first >= whole:
                    self.send_error(416 if served.status == 200 else served.status)
                    return
                self.send_response(206 if first else 200)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
                self.send_header("Content-Length", str(whole - first))
                self.end_headers()
                cut = served.cuts.pop(0) if served.cuts else None
                self.wfile.write(served.content[first:][:cut])

            def log_message(self, *args):
                pass

        return Handler
