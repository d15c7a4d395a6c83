"""`report`: one Markdown file made of studies."""
