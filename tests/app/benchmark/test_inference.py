"""`bench inference`: reading and writing at tiny sizes, eager and compiled. No test asserts a time."""

import json

import pytest
import torch

import models
from app.__main__ import main
from app.benchmark.inference import FORWARD, inference
from app.benchmark.workloads import VOCAB_SIZE, Stream
from app.cli.names import model_names


def test_every_model_is_read_and_written_with_at_each_context_and_batch_size():
    told = []
    curves = inference(1, "cpu", seq_lens=(4, 16), batch_sizes=(1, 2), budget=0, tell=told.append)
    assert len(told) == 2 * 2 * 2
    kinds = ("prefill", "prefill_to_forward", "decoding")
    names = [f"inference.{kind}.batch_{size}" for size in (1, 2) for kind in kinds]
    by_name = {name: {c.model for c in curves if c.quantity.name == name} for name in names}
    assert len(curves) == len(names) * len(model_names())
    assert all(found == set(model_names()) for found in by_name.values())
    for curve in curves:
        assert curve.seq_lens == (4, 16)
        assert all(second > 0 for seconds in curve.values for second in seconds)


def test_the_command_line_measures_compiled_steps_beside_eager_ones(uncompiled, tmp_path, capsys):
    path = tmp_path / "speed.json"
    line = "--models [Palm] --seq_lens [16,4] --batch_sizes [2] --repeats 1 --device cpu --compile --json"
    assert main(["bench", "inference", *line.split(), str(path)]) == 0
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [(result["name"], result["model"]) for result in results] == [
        (f"inference.{kind}.batch_2", model)
        for kind in ("prefill", "prefill_to_forward", "decoding", "decoding_compiled")
        for model in ("Transformer", "Palm")
    ]
    assert [[point["seq_len"] for point in result["points"]] for result in results] == [[4, 16]] * 8
    assert [result["baseline"] for result in results] == ["Transformer"] * 2 + [FORWARD] * 2 + ["Transformer"] * 4
    out = capsys.readouterr().out
    assert "Reading a prompt of T tokens, batch 2" in out
    assert "Writing after T tokens, batch 2, compiled" in out


@pytest.mark.parametrize("name", ["Transformer", "TrajectoryLM"])
def test_a_compiled_fork_reads_as_its_stream_does(uncompiled, name):
    torch.manual_seed(0)
    stream = Stream(getattr(models, name)(vocab_size=VOCAB_SIZE), "cpu", batch_size=2, compiled=True)
    stream.skip(15)
    fork = stream.fork(5)
    for each in (stream, fork):
        each.read(4)
    logits = [each.step(each.tokens[19], each.state)[0] for each in (stream, fork)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
