"""What `python -m app bench` measures: functions that return a `Ratio`, or curves, and the table `BENCHMARKS` of them.

Seconds say more about the machine than about the code; a ratio to something known carries over. To add a benchmark,
write its function, enter it with what it compares and the ratio we want at most, and add its name to `Name` in
`app.benchmark.command`.
"""

from __future__ import annotations

import copy
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from app.benchmark.inference import BATCH_SIZES, CONTEXTS, inference
from app.benchmark.mixers import SEQ_LENS, mixers
from app.benchmark.results import Curve, Result
from app.benchmark.timing import Ratio, Stopwatch, interleaved, nothing
from app.benchmark.workloads import CLIP, VOCAB_SIZE, bare_training, random_batch, waiting_for
from app.output.progress import Tell
from callbacks import Growth
from datamodules import CharText
from models import TokenFormer
from models.base import Batch, LanguageModel
from models.sparse_rnn.model import SparseRecurrence, Variant
from models.tokenformer import Pattention

WARMUP_STEPS = 5


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice and our callbacks' reports off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def pattention(
    repeats: int, device: str, *, d_model: int = 256, num_param_tokens: int = 1024, positions: int = 4096
) -> Ratio:
    """Forward and backward of a Pattention, against its two matrix products with a plain GELU in between."""
    layer = Pattention(d_model, d_model, num_param_tokens).to(device)
    key, value = layer.key_param_tokens, layer.value_param_tokens
    x, grad = (torch.randn(positions, d_model, device=device) for _ in range(2))
    wanted = (x.requires_grad_(), key, value)
    return interleaved(
        lambda: torch.autograd.grad(layer(x), wanted, grad),
        lambda: torch.autograd.grad(F.gelu(F.linear(x, key)) @ value, wanted, grad),
        repeats,
        sync=waiting_for(device),
    )


def growth(repeats: int, device: str, *, d_model: int = 128, batch_size: int = 16, seq_len: int = 256) -> Ratio:
    """All that the Growth callback does when every layer doubles, log included, against a training step.

    Each event grows a fresh copy of the model and its optimizer, made outside the measured time.
    """
    model = TokenFormer(vocab_size=VOCAB_SIZE, d_model=d_model).to(device)
    step, optimizer = bare_training(model)
    batch = random_batch(batch_size, seq_len, device)
    for _ in range(WARMUP_STEPS):
        step(batch)
    callback = Growth([WARMUP_STEPS], factor=[2.0])
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer: Any = SimpleNamespace(  # as much of a Trainer as the callback reads
            accumulate_grad_batches=1, global_step=WARMUP_STEPS, strategy=None, loggers=[TensorBoardLogger(folder)]
        )
        grown: list[TokenFormer] = []

        def prepare() -> None:
            # Copied together, so that the optimizer's parameters are those of the copied model.
            fresh, fresh_optimizer = copy.deepcopy((model, optimizer))
            grown[:], trainer.optimizers = [fresh], [fresh_optimizer]

        return interleaved(
            lambda: callback.on_train_batch_start(trainer, grown[0], batch, 0),
            lambda: step(batch),
            repeats,
            prepare=prepare,
            sync=waiting_for(device),
        )


def lightning(
    repeats: int,
    device: str,
    *,
    d_model: int = 128,
    batch_size: int = 16,
    seq_len: int = 256,
    chunk: int = 10,
    check: Callable[[LanguageModel, LanguageModel], object] | None = None,
) -> Ratio:
    """A step under Lightning's Trainer with TensorBoard, against a bare loop's step of a twin on the same batches.

    The two alternate by `chunk` steps, in which the Trainer writes to the log once; the ratio is that of chunks.
    `check` is called with both trained models.
    """
    model = TokenFormer(vocab_size=VOCAB_SIZE, d_model=d_model).to(device)
    twin = copy.deepcopy(model)
    batches = [random_batch(batch_size, seq_len, device) for _ in range((repeats + 1) * chunk)]
    # The Trainer would take the list itself for a list of loaders; PyTorch has no type for lists as datasets.
    train_loader = DataLoader(cast("Dataset[Batch]", batches), batch_size=None)
    remaining = iter(train_loader)
    step, _ = bare_training(twin, len(batches))

    def bare_chunk() -> None:
        for batch in itertools.islice(remaining, chunk):
            step(batch)

    stopwatch = Stopwatch(bare_chunk, chunk, waiting_for(device))
    hooks = LambdaCallback(on_train_start=stopwatch.start, on_train_batch_end=stopwatch.tick)
    with tempfile.TemporaryDirectory() as folder, quiet():
        L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=len(batches),
            gradient_clip_val=CLIP, logger=TensorBoardLogger(folder), log_every_n_steps=chunk, callbacks=[hooks],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(model, train_loader)  # fmt: skip
    if check is not None:
        check(model.to(device), twin)
    return stopwatch.ratio()


def loader(
    repeats: int,
    device: str,
    *,
    d_model: int = 128,
    batch_size: int = 16,
    seq_len: int = 256,
    corpus: str = "python-stdlib",
) -> Ratio:
    """Drawing the next training batch of text, against the training step that it is for."""
    data = CharText(corpus=corpus, batch_size=batch_size, seq_len=seq_len)
    data.prepare_data()
    data.setup("fit")
    batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    model = TokenFormer(vocab_size=data.vocab_size, d_model=d_model).to(device)
    step, _ = bare_training(model)
    inputs_BT, targets_BT = next(batches)
    batch = inputs_BT.to(device), targets_BT.to(device)
    return interleaved(lambda: next(batches), lambda: step(batch), repeats, sync=waiting_for(device))


def recurrences(state_width: int, k: int, device: str, variant: Variant) -> tuple[SparseRecurrence, SparseRecurrence]:
    """A sparse recurrent net and a dense one of as many levels."""
    sparse, dense = (SparseRecurrence(state_width, k, kind) for kind in (variant, "dense"))
    return sparse.to(device), dense.to(device)


def sparse(
    repeats: int,
    device: str,
    *,
    state_width: int = 2048,
    k: int = 32,
    steps: int = 16,
    variant: Variant = "inhibited",
) -> Ratio:
    """So many recurrent steps of one sequence, each from the state before, against those of the dense net."""
    drives = torch.randn(steps, 1, state_width, device=device).unbind()

    def walk(layer: SparseRecurrence) -> Callable[[], None]:
        state = layer.init_state(1)

        @torch.inference_mode()
        def read() -> None:
            nonlocal state
            for drive_BM in drives:
                state = layer.step(drive_BM, state)

        return read

    a, b = map(walk, recurrences(state_width, k, device, variant))
    return interleaved(a, b, repeats, sync=waiting_for(device))


def sparse_training(
    repeats: int,
    device: str,
    *,
    state_width: int = 2048,
    k: int = 32,
    batch_size: int = 16,
    seq_len: int = 64,
    variant: Variant = "inhibited",
) -> Ratio:
    """Forward and backward of the sparse recurrent net over a batch, against those of the dense net."""
    drive, grad = (torch.randn(batch_size, seq_len, state_width, device=device) for _ in range(2))
    drive.requires_grad_()

    def training(layer: SparseRecurrence) -> Callable[[], tuple[Tensor, ...]]:
        wanted = (drive, *layer.parameters())
        return lambda: torch.autograd.grad(layer(drive), wanted, grad)

    a, b = map(training, recurrences(state_width, k, device, variant))
    return interleaved(a, b, repeats, sync=waiting_for(device))


@dataclass(frozen=True)
class BenchSettings:
    """What the command line says of how to measure.

    `names` are of models and `seq_lens` the lengths, None for the usual ones, for `mixers` and `inference`;
    `batch_sizes` and `compile` are for the latter.
    """

    repeats: int
    device: str
    names: Sequence[str] | None = None
    seq_lens: Sequence[int] | None = None
    batch_sizes: Sequence[int] = BATCH_SIZES
    compile: bool = False
    tell: Tell = nothing


@dataclass(frozen=True)
class Benchmark:
    """What is set against what, the ratio we want at most, and the function that measures it."""

    compares: str
    target: float
    measure: Callable[[int, str], Ratio]

    def num_steps(self, settings: BenchSettings) -> int:
        """How often `tell` hears of it."""
        return 1

    def run(self, name: str, settings: BenchSettings) -> Sequence[Result | Curve]:
        """The one result."""
        settings.tell(f"{name}, {settings.repeats} times")
        return [Result(name, self.compares, self.measure(settings.repeats, settings.device), self.target)]


@dataclass(frozen=True)
class Survey:
    """Models set against the baseline at several lengths, by the function that measures their curves.

    Args:
        measure: The function, which takes `options` besides those that all such functions take.
        seq_lens: The usual lengths.
        kinds: How many things it measures at each length, of which `tell` hears.
        options: Names of further settings that it takes.
    """

    measure: Callable[..., Sequence[Curve]]
    seq_lens: Sequence[int]
    kinds: Callable[[BenchSettings], int]
    options: tuple[str, ...] = ()

    def num_steps(self, settings: BenchSettings) -> int:
        """How often `tell` hears of it."""
        return self.kinds(settings) * len(settings.seq_lens or self.seq_lens)

    def run(self, name: str, settings: BenchSettings) -> Sequence[Result | Curve]:
        """All curves."""
        s = settings
        more = {option: getattr(s, option) for option in self.options}
        return self.measure(
            s.repeats, s.device, names=s.names, seq_lens=s.seq_lens or self.seq_lens, tell=s.tell, **more
        )


def training_and_decoding(settings: BenchSettings) -> int:
    """Kinds of measurements of `mixers`."""
    return 2


def reading_and_writing(settings: BenchSettings) -> int:
    """Kinds of measurements of `inference`: reading, writing and perhaps compiled writing, for each batch size."""
    return (3 if settings.compile else 2) * len(settings.batch_sizes)


@dataclass(frozen=True)
class Widths:
    """Sparse recurrent nets set against the dense one at several widths: `sparse` and `sparse_training` of each.

    `sizes` are pairs of levels m and attended levels k.
    """

    sizes: tuple[tuple[int, int], ...] = ((128, 16), (512, 32), (2048, 32))
    variants: tuple[Variant, ...] = ("inhibited", "literal")

    def num_steps(self, settings: BenchSettings) -> int:
        """How often `tell` hears of it: of each net at each width, stepping and training."""
        return 2 * len(self.sizes) * len(self.variants)

    def run(self, name: str, settings: BenchSettings) -> Sequence[Result | Curve]:
        """A result for each; that sparse is no slower is all that is wanted of every width."""
        results = []
        for (m, k), variant, measure in itertools.product(self.sizes, self.variants, (sparse, sparse_training)):
            compares = f"{'16 steps' if measure is sparse else 'training'}, {variant}, k {k} of m {m} / dense"
            settings.tell(f"{name}, {compares}, {settings.repeats} times")
            ratio = measure(settings.repeats, settings.device, state_width=m, k=k, variant=variant)
            results.append(Result(name, compares, ratio, 1.0))
        return results


BENCHMARKS: dict[str, Benchmark | Survey | Widths] = {
    "pattention": Benchmark("layer / its bare products and GELU", 1.25, pattention),
    "growth": Benchmark("growth event / training step", 3.0, growth),
    "lightning": Benchmark("Trainer's step / bare loop's step", 1.10, lightning),
    "loader": Benchmark("next batch / training step", 0.03, loader),
    "sparse": Benchmark("16 steps, k 32 of m 2048 / dense", 0.2, sparse),
    "sparse_training": Benchmark("training, k 32 of m 2048 / dense", 1.0, sparse_training),
    "sparse_widths": Widths(),
    "mixers": Survey(mixers, SEQ_LENS, training_and_decoding),
    "inference": Survey(inference, CONTEXTS, reading_and_writing, ("batch_sizes", "compile")),
}
