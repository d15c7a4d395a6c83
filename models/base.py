"""What all language models share: loss, metrics, optimizer, counters of tokens and FLOPs, streaming, generation.

A model is an embedding, a list of layers (each a mixer by the contract below), a final norm and a head. A subclass
builds these in its constructor and says nothing else; the training loop, the checkpoint's extra entries and the
streaming form follow.

A layer is an `nn.Module` with `forward(x_BTD) -> x_BTD`, causal, any T >= 1; `init_state(batch_size)`,
`prefill(x_BTD, state) -> (x_BTD, state)` and `step(x_BD, state) -> (x_BD, state)`, both equal to the parallel form;
`flops_per_token(seq_len)` and `state_bytes(seq_len)`. All but the last three come out of one function `read`, where a
layer extends `models.layers.Mixer`.

Shapes: B batch, T time, D width, V vocabulary, P = B T positions of a batch, N of them scored.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models.layers import Layer, Norm, check_positive, norm_named, rms_norm, with_fixed_shapes
from models.metrics import IGNORED, EvalMetrics, Evaluation, evaluation_of, scored_positions
from models.optim import Optim, build_optimizer, grad_norm, lr_scale, reapply
from models.sharding import Sharding, Successors

Batch = tuple[Tensor, Tensor]
CountedBatch = tuple[Tensor, Tensor, int]  # with the number of scored positions
TRAINING_FLOPS = 3  # forward and backward, in forwards: the backward pass has two products for each of the forward's
SHARDING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
HEAD_STD = 0.02  # of a head's weights at the start, as GPT-2's
CHECKPOINT_KEY = "greenhouse"  # our own entry in a checkpoint


def mixed_seed(*parts: int) -> int:
    """A seed for a generator, different for any other `parts`, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


class LanguageModel(L.LightningModule):
    """An embedding, `self.layers`, a norm without parameters and `self.head`, trained to predict the next token.

    Args:
        vocab_size: Number of tokens.
        d_model: Width.
        layers: The layers, by the mixer contract.
        tie_embeddings: Use the embedding's matrix as the head.
        dropout: Probability of dropping embedded features in training.
        compile: Compile each layer with torch.compile.
        norm: The norm of what the head reads; embeddings have the RMS norm always.
    """

    scales_with_width: ClassVar[tuple[str, ...] | None] = None
    """Names of the options that go along with d_model in a comparison of widths; each model says its own."""

    searched: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Options of its own that a comparison's search tries, and their choices, beside those that all models share."""

    untold: ClassVar[Mapping[str, Any]] = {}
    """Options that checkpoints from before these do not tell, and what held then, where that is no default now."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: Sequence[nn.Module],
        tie_embeddings: bool,
        dropout: float,
        compile: bool,
        norm: Norm = "rms",
    ) -> None:
        super().__init__()
        check_positive(vocab_size=vocab_size, d_model=d_model, num_layers=len(layers))
        if not 0 <= dropout < 1:
            raise ValueError(f"--model.dropout is {dropout}; it must be at least 0 and below 1")
        self.vocab_size, self.d_model = vocab_size, d_model
        self.dropout, self.compile_layers, self.norm = dropout, compile, norm_named(norm)
        self.embed = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(layers)
        self.head: nn.Module = nn.Linear(d_model, vocab_size, bias=False)
        self.init_weights()
        if tie_embeddings:
            self.embed.weight = self.head.weight  # its small scale suits both: embeddings are normalised before use
        self.optim = Optim()
        self.tokens_seen = 0
        self.flops_spent = 0.0
        self.growth_events: list[dict[str, Any]] = []  # the lineage of a model that grows
        self.seed = 0
        self._sharding: Sharding | None = None
        self._evaluation = Evaluation()
        self._slice_names: list[str] = []
        self._eval_metrics: list[EvalMetrics] = []  # of each slice

    # Forward -------------------------------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Embedding N(0, 1), as its rows are normalised before use; head N(0, 0.02); each layer initialises itself."""
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(cast(Tensor, self.head.weight), std=HEAD_STD)

    def depth(self) -> list[Layer]:
        """The layers in the order of their application; one that is shared comes repeatedly."""
        return [cast(Layer, layer) for layer in self.layers]

    def features(self, tokens_BT: Tensor, *shared: Any) -> Tensor:
        """Tokens (B, T) -> normalised features (B, T, D) that the head reads; all layers are given what is `shared`."""
        x_BTD = F.dropout(rms_norm(self.embed(tokens_BT)), self.dropout, self.training)
        for layer in self.depth():
            x_BTD = layer(x_BTD, *shared)
        return self.norm(x_BTD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Tokens (B, T) -> logits (B, T, V)."""
        return cast(Tensor, self.head(self.features(tokens_BT)))

    def init_state(self, batch_size: int) -> list[Any]:
        """The streaming state before the first token, one entry for each application of a layer."""
        return [layer.init_state(batch_size) for layer in self.depth()]

    def _streamed(
        self, form: Literal["prefill", "step"], tokens: Tensor, state: list[Any], shared: tuple[Any, ...]
    ) -> tuple[Tensor, list[Any]]:
        """Tokens (B, T) or (B,) through all layers, in this form of theirs -> (..., D) and the next state."""
        x, next_state = rms_norm(self.embed(tokens)), []
        for layer, layer_state in zip(self.depth(), state, strict=True):
            x, layer_state = getattr(layer, form)(x, layer_state, *shared)
            next_state.append(layer_state)
        return self.norm(x if form == "step" else x[:, -1]), next_state

    def prefill(self, tokens_BT: Tensor, state: list[Any], *shared: Any) -> tuple[Tensor, list[Any]]:
        """Tokens (B, T), T >= 1, and the state -> logits (B, V) of the last position and the next state.

        It is what T calls of `step` give, from any state on, in the time of `forward`.
        """
        features_BD, next_state = self._streamed("prefill", tokens_BT, state, shared)
        return self.head(features_BD), next_state

    def step(self, token_B: Tensor, state: list[Any], *shared: Any) -> tuple[Tensor, list[Any]]:
        """One token (B,) and the state -> logits (B, V) and the next state; equal to `forward` at that position."""
        features_BD, next_state = self._streamed("step", token_B, state, shared)
        return self.head(features_BD), next_state

    def compiled_step(self) -> Callable[[Tensor, list[Any]], tuple[Tensor, list[Any]]]:
        """`step` as machine code, for a state of fixed shapes.

        On a CPU what calls the kernels is machine code, too: there are few, and small ones, and to call them by Python
        takes as long as they do.
        """
        return torch.compile(self.step, options={"cpp_wrapper": self.embed.weight.is_cpu})

    @torch.no_grad()
    def stream(
        self,
        prompt_BT: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> Iterator[Tensor]:
        """Yield `max_new_tokens` times the next token (B,), sampled from the softmax of logits / temperature.

        Temperature 0 takes the likeliest; `top_k` samples among the k likeliest. The prompt needs T >= 1. With
        `compile` the step is compiled, on a state with room for all tokens, so that no shape changes.
        """
        if not prompt_BT.size(1):
            raise ValueError("prompt_BT has no token; give at least one, such as that of a line break")
        logits_BV, state = self.prefill(prompt_BT, self.init_state(prompt_BT.size(0)))
        step = self.compiled_step() if compile else self.step
        if compile:
            state = with_fixed_shapes(state, prompt_BT.size(1) + max_new_tokens)
        for remaining in reversed(range(max_new_tokens)):
            token_B = sample(logits_BV, temperature, top_k, generator)
            yield token_B
            if remaining:
                logits_BV, state = step(token_B, state)

    def generate(
        self,
        prompt_BT: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> Tensor:
        """The prompt (B, T) and what `stream` makes of it: tokens (B, T + max_new_tokens)."""
        written = self.stream(prompt_BT, max_new_tokens, temperature, top_k, generator, compile)
        return torch.cat((prompt_BT, *(token_B.unsqueeze(1) for token_B in written)), 1)

    # Sizes ---------------------------------------------------------------------------------------------------------

    @classmethod
    def at_width(cls, options: Mapping[str, Any], d_model: int) -> dict[str, Any]:
        """What to put over a model's `options` for another width: d_model, and in proportion what goes along with it.

        Options that are not given have the constructor's defaults; one that is None stays so. ValueError if the model
        does not say what goes along.
        """
        names, parameters = cls.scales_with_width, inspect.signature(cls).parameters
        if names is None or not parameters.keys() >= set(names):
            raise ValueError(
                f"{cls.__name__} does not say which of its options go along with d_model; let its `scales_with_width` "
                f"be a tuple of their names, among {', '.join(parameters)}"
            )
        current = {name: options.get(name, parameters[name].default) for name in ("d_model", *names)}
        factor = d_model / current.pop("d_model")
        scaled = {name: max(1, round(factor * size)) for name, size in current.items() if size is not None}
        return {"d_model": d_model} | scaled

    def num_parameters(self) -> int:
        """Trained numbers, a shared one counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of a token's forward pass in a sequence of `seq_len`: 2 a multiply-add of every matrix product.

        Elementwise work is not counted, but for the local mixing; attention is counted with all T^2 pairs, as is usual,
        although a causal kernel may skip half. Training costs `TRAINING_FLOPS` times as much.
        """
        layers = sum(layer.flops_per_token(seq_len) for layer in self.depth())
        return layers + 2 * sum(weight.numel() for weight in self.head.parameters())

    def state_bytes(self, seq_len: int) -> int:
        """Bytes of one sequence's streaming state after `seq_len` tokens."""
        return sum(layer.state_bytes(seq_len) for layer in self.depth())

    def growing_sizes(self) -> dict[str, int]:
        """All that can grow, by the name of its option, and its current size; empty for a model that cannot grow."""
        return {}

    # Training ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, num_scored: int | None = None) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, of which `num_scored` spares a GPU the counting."""
        inputs_BT, targets_BT = batch
        scored_N = scored_positions(targets_BT, num_scored)
        return F.cross_entropy(self._logits(inputs_BT, scored_N).float(), targets_BT.flatten()[scored_N])

    def _logits(self, inputs_BT: Tensor, scored_N: Tensor) -> Tensor:
        """Logits (N, V) of the scored positions; the head works on these alone."""
        return cast(Tensor, self.head(self.features(inputs_BT).flatten(0, 1).index_select(0, scored_N)))

    def on_fit_start(self) -> None:
        """Take the run's seed, from which each step draws its own randomness."""
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", self.seed))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed each step from (seed, rank, step), so that a resumed run draws what an uninterrupted one would."""
        batch_number = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(mixed_seed(self.seed, self.global_rank, batch_number))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count a batch's scored positions before it is sent, from where a GPU fetches it by itself."""
        inputs_BT, targets_BT = batch
        if not targets_BT.is_cpu:
            return batch
        num_scored = int((targets_BT != IGNORED).sum())
        if self.device.type == "cuda":
            inputs_BT, targets_BT = inputs_BT.pin_memory(), targets_BT.pin_memory()
        return inputs_BT, targets_BT, num_scored

    def training_step(self, batch: Batch | CountedBatch, batch_idx: int) -> Tensor:
        """The loss; counts the batch's tokens and FLOPs over all processes."""
        loss = self.loss(batch[:2], *batch[2:])
        tokens = batch[0].numel() * self.trainer.world_size
        self.tokens_seen += tokens
        self.flops_spent += float(TRAINING_FLOPS * self.flops_per_token(batch[0].size(1)) * tokens)
        if self._step_is_logged():
            # The mean over all processes; not for Lightning's bar, for which it would be fetched at each step.
            self.log("train/loss", loss.detach(), sync_dist=True)
        return loss

    def _step_is_logged(self) -> bool:
        """Whether Lightning logs the step that is being made."""
        every = cast(Any, self.trainer).log_every_n_steps
        return bool(every) and (self.trainer.global_step + 1) % every == 0

    def configure_optimizers(self) -> Any:
        """The optimizer of `self.optim`, its learning rate a pure function of the step."""
        if self.optim.optimizer == "muon" and (self.is_sharded() or isinstance(self.trainer.strategy, SHARDING)):
            raise ValueError(
                "--optim.optimizer muon orthogonalises whole matrices, and this --trainer.strategy spreads each over "
                "the processes; use --trainer.strategy ddp or --optim.optimizer adamw"
            )
        total_steps = self.trainer.estimated_stepping_batches  # infinite if nothing but time ends the run
        # A fused AdamW would take a loss scale out itself, after the gradients were clipped and logged with it.
        is_scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(self, self.optim, fused=not (self.is_sharded() or is_scaled))
        scheduler = LambdaLR(optimizer, lambda step: lr_scale(step, total_steps, self.optim))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let the configured recipe hold on resume, not the one in the checkpoint."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):  # Lightning's finder of learning rates has one of its own
                reapply(config.scheduler, self.optim)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm computed once, and log that norm with the learning rate."""
        norm = grad_norm(self.parameters())
        self.log("train/grad_norm", norm)
        if self._step_is_logged():
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)

    # Evaluation ----------------------------------------------------------------------------------------------------

    def _start_evaluation(self, stage: str, num_loaders: int) -> None:
        self._evaluation = evaluation_of(cast(Any, self.trainer).datamodule, stage)
        self._slice_names = self._evaluation.slice_names(num_loaders)
        self._eval_metrics = [
            EvalMetrics(self._evaluation.metrics, self.vocab_size, self.device) for _ in self._slice_names
        ]

    def evaluate(self, batch: Batch | CountedBatch, slice_idx: int, free_running: bool = False) -> None:
        """Add a batch to the metrics of its slice."""
        inputs_BT, targets_BT = batch[:2]
        scored_N = scored_positions(targets_BT, *batch[2:])
        free = self.free_running((inputs_BT, targets_BT)) if free_running else None
        self._eval_metrics[slice_idx].update(self._logits(inputs_BT, scored_N), targets_BT, scored_N, free)

    def _finish_evaluation(self, prefix: str) -> None:
        computed = (metrics.compute() for metrics in self._eval_metrics)
        results = dict(zip(self._slice_names, computed, strict=True))
        headline = self._evaluation.headline or self._slice_names
        for name in results[headline[0]]:
            mean = sum(results[slice_name][name] for slice_name in headline) / len(headline)
            self.log(f"{prefix}/{name}", mean, prog_bar=name == "loss")
            if len(results) > 1:
                for slice_name, result in results.items():
                    self.log(f"{prefix}/{name}/{slice_name}", result[name])

    def free_running(self, batch: Batch) -> Tensor:
        """The row (B, T) that greedy decoding writes at the scored positions when it reads its own output there.

        What it has at other positions says nothing.
        """
        inputs_BT, targets_BT = batch
        scored_BT = targets_BT != IGNORED
        first = int(scored_BT.any(0).int().argmax())  # what lies before is the same whatever is written
        logits_BV, state = self.prefill(inputs_BT[:, : first + 1], self.init_state(inputs_BT.size(0)))
        outputs_BT = inputs_BT.clone()
        outputs_BT[:, first] = logits_BV.argmax(-1)
        for t in range(first + 1, inputs_BT.size(1)):
            token_B = torch.where(scored_BT[:, t - 1], outputs_BT[:, t - 1], inputs_BT[:, t])
            logits_BV, state = self.step(token_B, state)
            outputs_BT[:, t] = logits_BV.argmax(-1)
        return outputs_BT

    def on_validation_epoch_start(self) -> None:
        """Begin with empty metrics, one set a slice."""
        self._start_evaluation("validate", len(self.trainer.num_val_batches))

    def validation_step(self, batch: Batch | CountedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to its slice's metrics."""
        self.evaluate(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log val/*: the headline and, where there are several slices, each of them."""
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Begin with empty metrics, one set a slice."""
        self._start_evaluation("test", len(self.trainer.num_test_batches))

    def test_step(self, batch: Batch | CountedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to its slice's metrics."""
        self.evaluate(batch, dataloader_idx, "free_running_exact_match" in self._evaluation.metrics)

    def on_test_epoch_end(self) -> None:
        """Log test/*, as in validation."""
        self._finish_evaluation("test")

    def predict_step(self, batch: Batch | CountedBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The batch with the likeliest token at every position."""
        inputs_BT, targets_BT = batch[:2]
        return {"inputs": inputs_BT, "targets": targets_BT, "predictions": self(inputs_BT).argmax(-1)}

    # Devices and checkpoints ---------------------------------------------------------------------------------------

    def is_sharded(self) -> bool:
        """Whether a strategy spreads each parameter over the processes (FSDP2)."""
        return self.device_mesh is not None

    def configure_model(self) -> None:
        """Shard by FSDP2 where the strategy brings a device mesh; compile the layers where asked to."""
        if self.compile_layers:
            for layer in self.layers:
                layer.compile()
        if self.is_sharded() and self._sharding is None:
            mesh = cast(DeviceMesh, self.device_mesh)["data_parallel"]
            self._sharding = Sharding(self, list(self.layers), ("forward", "prefill", "step", "loss", "evaluate"), mesh)

    def gather(self) -> Successors:
        """Undo the sharding, until `configure_model` is called again; returns what follows each sharded parameter."""
        sharding, self._sharding = self._sharding, None
        assert sharding is not None
        return sharding.undo()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add our entry: the model's name, seed, recipe and counters, all plain values."""
        checkpoint[CHECKPOINT_KEY] = {
            "model": type(self).__name__,
            "seed": self.seed,
            "optim": asdict(self.optim),
            "tokens_seen": self.tokens_seen,
            "flops_spent": self.flops_spent,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back."""
        entry = checkpoint[CHECKPOINT_KEY]
        self.seed, self.tokens_seen, self.flops_spent = entry["seed"], entry["tokens_seen"], entry["flops_spent"]


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw a token (B,) from softmax(logits / temperature) among the `top_k` likeliest; at 0 take the likeliest."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None and top_k < logits_BV.size(-1):
        kth_B1 = logits_BV.topk(top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)
