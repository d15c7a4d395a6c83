"""The observing callbacks: what they write is right, once, and goes on after a resume as if nothing had happened."""

import json
import signal
import time
from csv import DictReader
from itertools import pairwise

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader, TensorDataset

from callbacks import (
    Checkpoints,
    Growth,
    Narrator,
    Predictions,
    Record,
    RunStopped,
    Samples,
    ScalingCurves,
    TensorBoard,
    Throughput,
)
from callbacks.console import say
from callbacks.record_file import read_record
from models import TokenFormer

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")

CHARACTERS = "\nabcdefg"
BATCH, SEQ_LEN = 4, 32


class Letters(L.LightningDataModule):
    vocab_size = len(CHARACTERS)
    description = {"task": "Letters", "characters": len(CHARACTERS)}  # noqa: RUF012
    vocabulary = CHARACTERS

    def loader(self, batches=20):
        """The same batch again and again: a resumed run needs no position to see what it would have seen."""
        tokens = torch.randint(self.vocab_size, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))
        tokens = tokens.repeat(batches, 1)
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=BATCH)

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return [self.loader(1), self.loader(1)]

    test_dataloader = predict_dataloader = val_dataloader

    def evaluation(self, stage):
        return {"slices": ("short", "long")}

    def encode(self, text):
        if unknown := set(text) - set(CHARACTERS):
            raise ValueError(f"{sorted(unknown)} not in the vocabulary")
        return [CHARACTERS.index(character) for character in text]

    def decode(self, tokens):
        return "".join(CHARACTERS[token] for token in tokens)


class Numbers(Letters):
    encode = decode = None

    def __getattribute__(self, name):
        if name in ("encode", "decode"):
            raise AttributeError(name)
        return super().__getattribute__(name)


class StopAt(L.Callback):
    """Stops the fit before a step: by a signal that Checkpoints answers, or by the exception given."""

    def __init__(self, step, exception=None):
        self.step, self.exception = step, exception

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % trainer.accumulate_grad_batches == 0:
            if self.exception:
                raise self.exception
            signal.raise_signal(signal.SIGTERM)


def make_model(**options):
    torch.manual_seed(0)
    return TokenFormer(
        **{"vocab_size": 8, "d_model": 16, "num_heads": 2, "num_param_tokens": 8, "num_ffn_param_tokens": 16} | options
    )


def make_trainer(folder, *callbacks, max_steps=8, **options):
    logger = TensorBoard(folder, name="", version="", default_hp_metric=False)
    defaults = {
        "accelerator": "cpu", "max_steps": max_steps, "max_epochs": -1, "logger": logger, "default_root_dir": folder,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2, "val_check_interval": 4,
        "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "enable_checkpointing": False,
    }  # fmt: skip
    if any(isinstance(callback, Checkpoints) for callback in callbacks):
        defaults["enable_checkpointing"] = True
    return L.Trainer(**defaults | options, callbacks=list(callbacks))


def watching():
    return [Throughput(), ScalingCurves(), Record()]


def fit(folder, *callbacks, model=None, data=None, ckpt_path=None, **options):
    trainer = make_trainer(folder, *callbacks, **options)
    trainer.fit(model or make_model(), datamodule=data or Letters(), ckpt_path=ckpt_path)
    return trainer


def scalars(folder):
    """Every scalar of a folder's event files, as TensorBoard's reader has it: {tag: [(step, value)]}."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, round(e.value, 5)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def strictly(path):
    """JSON without the NaN and Infinity that only Python reads."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def spent(steps):
    return steps * BATCH * SEQ_LEN


def test_throughput_logs_at_logging_steps_and_counts_training_alone(tmp_path):
    trainer = fit(tmp_path, throughput := Throughput())
    logged = scalars(tmp_path)
    assert len(logged["perf/tokens_per_second"]) == len(logged["perf/seconds_per_step"]) == 4
    speed, pace = logged["perf/tokens_per_second"][-1][1], logged["perf/seconds_per_step"][-1][1]
    assert speed * pace == pytest.approx(spent(1), rel=0.05)
    assert 0 < throughput.seconds == throughput.state_dict()["seconds"]
    assert trainer.callback_metrics["perf/tokens_per_second"] > 0


def test_throughput_goes_on_after_a_resume():
    throughput = Throughput()
    throughput.load_state_dict({"seconds": 100.0})
    assert 100 <= throughput.seconds < 101


def test_speed_counts_all_batches_of_an_accumulation(tmp_path):
    fit(tmp_path, Throughput(), accumulate_grad_batches=2, max_steps=4)
    logged = scalars(tmp_path)
    speed, pace = logged["perf/tokens_per_second"][-1][1], logged["perf/seconds_per_step"][-1][1]
    assert speed * pace == pytest.approx(spent(2), rel=0.05)


def test_curves_against_tokens_and_flops_have_the_model_s_own_counts(tmp_path):
    model = make_model()
    fit(tmp_path, ScalingCurves(), model=model, accumulate_grad_batches=2, max_steps=4)
    curves = scalars(tmp_path)
    assert [step for step, _ in curves["by_tokens/train_loss"]] == [spent(4), spent(8)]
    assert [step for step, _ in curves["by_tokens/val_bits_per_char"]] == [spent(4), spent(8)]
    assert curves["by_megaflops/val_loss"][-1][0] == round(model.flops_spent / 1e6)


def test_a_run_is_one_folder_of_events_whose_first_groups_are_the_curves(tmp_path):
    fit(tmp_path / "run", *watching(), Samples(), Growth(steps=[5], num_param_tokens=[12]), log_every_n_steps=1)
    assert {path.parent.name for path in tmp_path.rglob("events*")} == {"run"}
    logged = scalars(tmp_path / "run")
    in_time_series = sorted(logged, key=lambda tag: tag.replace("/", "\0"))  # only "/" and digits are before "-"
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in in_time_series))
    assert groups[:2] == ["by_megaflops", "by_milliseconds"]
    assert "epoch" not in logged
    for group in ("by_tokens", "by_megaflops"):  # a toy's points are told apart
        steps = [step for step, _ in logged[f"{group}/train_loss"]]
        assert len(set(steps)) == len(steps) == 8


def points_without_time(folder):
    """Points of a folder; where the axis or the value is time, which no two runs share, only what they do share."""
    points = {}
    for tag, places in scalars(folder).items():
        if "milliseconds" in tag:
            assert sorted(places) == places
            places = [value for _, value in places]
        if not tag.startswith("perf/") and tag != "hp/seconds":
            points[tag] = places
    return points


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_interrupted_and_resumed_curves_equal_uninterrupted_ones(tmp_path, stop):
    """Steps after the checkpoint are lost by a crash; a signal saves first. Both leave one whole curve."""
    growth = {"steps": [5], "num_param_tokens": [12]}
    fit(tmp_path / "whole", *watching(), Growth(**growth), Checkpoints(every_n_steps=3))
    folder = tmp_path / "halves"
    with pytest.raises((RunStopped, RuntimeError)):
        fit(
            folder,
            *watching(),
            Growth(**growth),
            Checkpoints(every_n_steps=3),
            StopAt(stop, RuntimeError("crash") if stop % 2 == 0 else None),
        )
    time.sleep(1)  # TensorBoard reads event files by name, which is the second they were begun in
    last = folder / "checkpoints" / "last.ckpt"
    fit(folder, *watching(), Growth(**growth), Checkpoints(every_n_steps=3), ckpt_path=str(last))
    assert points_without_time(folder) == points_without_time(tmp_path / "whole")
    whole, halves = (read_record(tmp_path / name / "record.json") for name in ("whole", "halves"))

    def points(record):
        return [{k: v for k, v in point.items() if k != "seconds"} for point in record["history"]]

    assert points(halves) == points(whole)
    assert halves["status"] == "finished"
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(halves["history"]))


def test_a_run_that_goes_on_from_an_earlier_checkpoint_loses_what_came_after_it(tmp_path):
    growth = {"steps": [3, 5], "num_param_tokens": [12, 16]}
    fit(tmp_path / "whole", *watching(), Growth(**growth))
    run = tmp_path / "run"
    fit(run, *watching(), Growth(**growth), KeepAt(5))
    time.sleep(1)
    fit(run, *watching(), Growth(**growth), ckpt_path=str(run / "5.ckpt"))
    assert points_without_time(run) == points_without_time(tmp_path / "whole")


class KeepAt(L.Callback):
    """Keeps a checkpoint after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/{self.step}.ckpt")


def test_a_growth_is_a_point_of_its_own_in_the_curves_and_each_size_is_a_point(tmp_path):
    model = make_model()
    small = model.num_parameters()
    fit(tmp_path, *watching(), Growth(steps=[5, 6], num_param_tokens=[12, 16]), model=model)
    curves = scalars(tmp_path)
    ((_, before), (_, after)) = curves["by_tokens/val_loss"]
    marks = {tag: points for tag, points in curves.items() if tag.startswith("growth_marks/by_tokens/val_loss/")}
    assert marks == {
        "growth_marks/by_tokens/val_loss/1": [(spent(6), before)],
        "growth_marks/by_tokens/val_loss/2": [(spent(7), before)],
    }
    first, *_, last = curves["by_parameters/val_loss"]
    assert (first, last) == ((small, before), (model.num_parameters(), after))
    assert not [tag for tag in curves if "by_parameters" in tag and ("growth" in tag or "train" in tag)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_sizes_are_steps(tmp_path, accumulated):
    growth = Growth(steps=[4, 6], num_param_tokens=[12, 16])
    fit(tmp_path, *watching(), growth, accumulate_grad_batches=accumulated, val_check_interval=4 * accumulated)
    assert scalars(tmp_path)["growth/num_param_tokens"] == [(0, 8), (3, 8), (4, 12), (5, 12), (6, 16), (7, 16)]


def test_a_ramped_tau_begins_where_it_was_and_ends_at_the_root_of_the_size(tmp_path):
    taus = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            taus.append([float(layers[0].tau) for layers in pl_module.pattentions().values()])

    model = make_model()
    growth = Growth(steps=[2], num_param_tokens=[16], init="zero_keys", tau="ramped", rewarm_steps=4)
    fit(tmp_path, *watching(), growth, Look(), model=model)
    first, last = 8**0.5, 16**0.5
    expected = [first] * 2 + [first + part * (last - first) for part in (0.25, 0.5, 0.75, 1, 1, 1)]
    assert [tau for tau, _ in taus] == pytest.approx(expected)
    assert {tau for _, tau in taus} == {4.0}  # of the group that did not grow
    (event,) = model.growth_events
    assert event["logit_change"] <= 1e-6
    assert model.layers[0].query.tau == pytest.approx(last)


def test_a_tau_goes_on_rising_when_the_other_group_grows_or_its_own_grows_again(tmp_path):
    """Each group's own last growth decides, not the last of all."""
    taus = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            taus.append([float(layers[0].tau) for layers in pl_module.pattentions().values()])

    sizes = {"num_param_tokens": [16, 16, 32], "num_ffn_param_tokens": [16, 36, 36]}
    growth = Growth(steps=[1, 2, 4], **sizes, init="zero_keys", tau="ramped", rewarm_steps=4)
    fit(tmp_path, growth, Look(), max_steps=10, limit_val_batches=0)
    begin, middle, end = 8**0.5, 16**0.5, 32**0.5
    reached = begin + 0.75 * (middle - begin)
    rising = [begin + part * (middle - begin) for part in (0, 0.25, 0.5, 0.75)]
    again = [reached + part * (end - reached) for part in (0.25, 0.5, 0.75, 1, 1, 1)]
    assert [tau for tau, _ in taus] == pytest.approx(rising + again)
    assert [tau for _, tau in taus] == pytest.approx([4, 4, 4.5, 5, 5.5, 6, 6, 6, 6, 6])


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"steps": [50], "factor": [2]}, r"--growth.steps \[50\]: the run ends at step 8"),
        ({"steps": [8], "factor": [2]}, r"--growth.steps \[8\]: the run ends at step 8"),
        (
            {"steps": [3], "factor": [1]},
            "--growth.steps 3: nothing grows to num_param_tokens 8, num_ffn_param_tokens 16",
        ),
        ({"steps": [3, 5], "factor": [2, 2]}, "--growth.steps 5: nothing grows to num_param_tokens 16"),
        ({"steps": [3], "num_param_tokens": [2**31]}, "--growth.num_param_tokens .* at most 2147483647"),
    ],
)
def test_growth_that_never_happens_is_refused(tmp_path, schedule, says):
    with pytest.raises(ValueError, match=says):
        fit(tmp_path, Growth(**schedule))


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"steps": [3], "num_param_tokens": [16]}, "--growth.steps 3: the run goes on at step 4"),
        (
            {"steps": [6], "num_param_tokens": [12]},
            "--growth.steps 6: nothing grows to .*, as the model has num_param_tok",
        ),
    ],
)
def test_growth_that_a_resumed_run_is_past_is_refused(tmp_path, schedule, says):
    fit(tmp_path, Growth(steps=[2], num_param_tokens=[12]), Checkpoints(), max_steps=4)
    last = str(tmp_path / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=says):
        fit(tmp_path, Growth(**schedule), ckpt_path=last)
    fit(tmp_path, Growth(steps=[2, 4], num_param_tokens=[12, 16]), ckpt_path=last)


def test_growth_beyond_the_end_is_told_where_the_run_may_be_lengthened(tmp_path, capsys):
    fit(tmp_path, Growth(steps=[3, 8, 20], factor=[2, 3, 4]), max_steps=4, limit_val_batches=0)
    assert "the run ends at step 4, before growth at 8, 20\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"), [("init", "random"), ("tau", "ramped"), ("carry", "mean"), ("rewarm_steps", 9)]
)
def test_options_of_growth_need_steps(option, value):
    with pytest.raises(ValueError, match=f"--growth.{option} {value} changes nothing without --growth.steps"):
        Growth(**{option: value})


def test_growth_on_disk_is_marked_when_the_fit_goes_on(tmp_path):
    from models.growth import grow_checkpoint

    fit(tmp_path, *watching(), Checkpoints(), max_steps=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint, small = torch.load(last, weights_only=True), make_model().num_parameters()
    model = make_model()
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    grow_checkpoint(model, checkpoint, {"num_param_tokens": 12})
    torch.save(checkpoint, tmp_path / "grown.ckpt")
    model = make_model()
    fit(tmp_path, *watching(), Growth(), Checkpoints(), model=model, ckpt_path=str(tmp_path / "grown.ckpt"))
    curves = scalars(tmp_path)
    assert curves["growth_marks/by_tokens/val_loss/1"][0][0] == spent(5)
    assert [place for place, _ in curves["by_parameters/val_loss"]] == [small, model.num_parameters()]
    assert curves["growth/num_param_tokens"] == [(4, 12), (7, 12)]


def test_points_reach_the_disk_before_a_checkpoint_does(tmp_path):
    """What a killed process had written before its checkpoint must be there: nobody writes it again."""
    seen = []

    class Look(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "some.ckpt")
            seen.append(len(scalars(tmp_path).get("by_tokens/val_loss", [])))

    fit(tmp_path, ScalingCurves(), Look())
    assert seen == [1, 2]


def test_one_layout_for_a_run_and_one_text_about_it_for_a_folder_of_runs(tmp_path):
    def tensors(name):
        return EventAccumulator(str(tmp_path / name)).Reload()

    fit(tmp_path / "one", ScalingCurves(), Checkpoints(), max_steps=4)
    fit(tmp_path / "one", ScalingCurves(), Checkpoints(), ckpt_path=str(tmp_path / "one/checkpoints/last.ckpt"))
    fit(tmp_path / "two", ScalingCurves(), max_steps=1)
    for name in ("one", "two"):
        assert len(tensors(name).Tensors("custom_scalars__config__")) == 1
    assert len(tensors("one").Tensors("about/text_summary")) == 1
    assert "about/text_summary" not in tensors("two").Tags()["tensors"]


def test_logging_can_be_off(tmp_path):
    fit(tmp_path, *watching(), Samples(), Narrator(), log_every_n_steps=0)
    fit(tmp_path / "none", *watching(), Samples(), Narrator(), logger=False)
    assert read_record(tmp_path / "none/record.json")["status"] == "finished"


def test_the_record_tells_the_run(tmp_path):
    model = make_model()
    growth = Growth(steps=[5], num_param_tokens=[12])
    fit(tmp_path, *watching(), growth, model=model)
    record = strictly(tmp_path / "record.json")
    assert record == read_record(tmp_path / "record.json")
    assert (record["status"], record["tokens"], record["flops"]) == ("finished", spent(8), model.flops_spent)
    assert record["parameters"] == model.num_parameters() > record["history"][0]["parameters"]
    assert {point["step"] for point in record["history"]} == {2, 4, 6, 8}
    assert sum("val/bits_per_char" in point for point in record["history"]) == 2
    assert record["final"]["val/loss"] == [p["val/loss"] for p in record["history"] if "val/loss" in p][-1]
    text = json.dumps(record)
    assert all(word in text for word in ("TokenFormer", "Letters", "learning_rate", "torch", '"num_param_tokens": 12'))
    assert {"python", "torch", "lightning", "greenhouse"} <= record["versions"].keys()
    assert not list(tmp_path.glob(".*tmp"))


def test_the_record_keeps_few_points_of_a_long_run(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.records.MAX_TRAINING_POINTS", 3)
    fit(tmp_path, Record(), max_steps=12, log_every_n_steps=1)
    assert sum("train/loss" in point for point in read_record(tmp_path / "record.json")["history"]) <= 4


@pytest.mark.parametrize(
    ("exception", "status"),
    [(KeyboardInterrupt(), "interrupted"), (None, "interrupted"), (RuntimeError("out of\nwater"), "failed: out of")],
)
def test_the_record_tells_how_the_run_ended(tmp_path, exception, status):
    with pytest.raises((SystemExit, RunStopped, RuntimeError)):
        fit(tmp_path, *watching(), Checkpoints(), StopAt(3, exception))
    assert read_record(tmp_path / "record.json")["status"].startswith(status)


def test_losses_that_are_not_finite_leave_readable_json(tmp_path):
    model = make_model()
    torch.nn.init.constant_(model.head.weight, float("nan"))
    fit(tmp_path, Record(), model=model)
    assert strictly(tmp_path / "record.json")["status"] == "finished"


@pytest.mark.parametrize("damage", ['{"format": 1, "hist', "[]", '{"format": 99, "history": []}'])
def test_a_damaged_record_is_refused_by_readers_and_set_aside_by_runs(tmp_path, capsys, damage):
    fit(tmp_path, Record(), Checkpoints(), max_steps=4)
    path = tmp_path / "record.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match="record.json"):
        read_record(path)
    fit(tmp_path, Record(), Checkpoints(), ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    assert read_record(path)["step"] == 8
    assert (tmp_path / "record.json.damaged").read_text() == damage
    assert "record.json" in capsys.readouterr().out
    path.write_text(damage)
    make_trainer(tmp_path, Record()).test(make_model(), datamodule=Letters(), verbose=False)


def test_a_missing_record_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="record.json"):
        read_record(tmp_path / "record.json")


def test_test_results_join_the_record_and_change_nothing_else(tmp_path):
    model = make_model()
    fit(tmp_path, *watching(), model=model)
    before = read_record(tmp_path / "record.json")
    make_trainer(tmp_path, Record()).test(model, datamodule=Letters(), verbose=False)
    after = read_record(tmp_path / "record.json")
    assert after.pop("test").keys() >= {"test/loss", "test/accuracy/short"}
    assert after["measured"].pop("test") == {"batches": 2, "of": 2, "checkpoint": None, "step": 0}
    assert {k: v for k, v in after.items() if k in before} == before


def test_testing_without_a_record_makes_none(tmp_path):
    make_trainer(tmp_path, Record()).test(make_model(), datamodule=Letters(), verbose=False)
    assert not (tmp_path / "record.json").exists()


def test_a_failing_test_does_not_touch_a_finished_record(tmp_path):
    class Fail(L.Callback):
        def on_test_end(self, trainer, pl_module):
            raise RuntimeError("disk")

    model, trainer = make_model(), make_trainer(tmp_path, Record(), Fail())
    trainer.fit(model, datamodule=Letters())
    with pytest.raises(RuntimeError, match="disk"):
        trainer.test(model, datamodule=Letters(), verbose=False)
    assert read_record(tmp_path / "record.json")["status"] == "finished"


def test_hyper_parameters_are_logged_once_with_the_final_quality(tmp_path):
    def hparams():
        events = EventAccumulator(str(tmp_path)).Reload()
        return [tag for tag in events.Tags()["tensors"] if "hparams" in tag], events.summary_metadata

    with pytest.raises(RunStopped):
        fit(tmp_path, Record(), Checkpoints(), StopAt(4))
    fit(tmp_path, Record(), Checkpoints(), ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    starts = [
        value
        for path in sorted(tmp_path.glob("events*"))
        for value in event_values(path)
        if value.tag == "_hparams_/session_start_info"
    ]
    assert len(starts) == 1
    final = read_record(tmp_path / "record.json")["final"]
    assert scalars(tmp_path)["hp/bits_per_char"][-1][1] == pytest.approx(final["val/bits_per_char"], abs=1e-4)
    assert "hp_metric" not in scalars(tmp_path)


def test_hyper_parameters_are_all_options_of_the_run(tmp_path):
    growth = Growth(steps=[3], factor=[2.0], tau="frozen", init="zero_keys")
    fit(tmp_path, *watching(), growth, max_steps=4, accumulate_grad_batches=2)
    (file,) = tmp_path.glob("events*")
    (start,) = [value for value in event_values(file) if value.tag == "_hparams_/session_start_info"]
    told = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in told.items()}
    expected = {
        "model": "TokenFormer", "d_model": 16, "num_ffn_param_tokens": 32, "data": "Letters", "characters": 8,
        "optimizer": "adamw", "growth.steps": "[3]", "growth.factor": "[2.0]", "growth.tau": "frozen",
        "accumulate_grad_batches": 2, "max_steps": 4,
    }  # fmt: skip
    assert {name: values.get(name) for name in expected} == expected
    assert scalars(tmp_path)["hp/growths"] == [(4, 1)]
    tags = [value.tag for value in event_values(file)]
    assert "_hparams_/experiment" not in tags  # of which TensorBoard would take the first run's for all


class Wandb(WandbLogger):
    """W&B's logger by its interface alone: it keeps what it is given."""

    name = version = save_dir = experiment = None

    def __init__(self):
        self.rows, self.texts, self.options = [], {}, {}

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))

    def log_hyperparams(self, params):
        self.options |= params

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.texts |= {key: [dict(zip(columns, row, strict=True)) for row in data]}

    def finalize(self, status):
        pass


def test_curves_samples_growth_and_options_reach_other_loggers_where_they_can(tmp_path):
    csv, wandb = CSVLogger(tmp_path, name="", version=""), Wandb()
    growth = Growth(steps=[5], num_param_tokens=[12])
    fit(tmp_path, *watching(), growth, Samples(prompt="abc", max_new_tokens=5), logger=[csv, wandb])
    with (tmp_path / "metrics.csv").open() as file:
        lines = list(DictReader(file))
    for rows in (lines, wandb.rows):
        assert [float(row["curves/tokens"]) for row in rows if row.get("curves/val_loss")] == [spent(4), spent(8)]
        sizes = [float(row["growth/num_param_tokens"]) for row in rows if row.get("growth/num_param_tokens")]
        assert sizes == [8, 8, 8, 12, 12]
    assert wandb.texts["samples/text"][0]["text"].startswith("abc")
    assert wandb.texts["growth/event"][0]["text"].startswith("grown before step 6")
    assert "growth.steps" in (tmp_path / "hparams.yaml").read_text()
    assert wandb.options["optimizer"] == "adamw"


def event_values(path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]


def test_samples_are_written_after_each_validation_and_the_same_again(tmp_path):
    def texts(folder):
        events = EventAccumulator(str(folder)).Reload()
        return [e.tensor_proto.string_val[0] for e in events.Tensors("samples/text/text_summary")]

    for name in ("one", "two"):
        fit(tmp_path / name, Samples(prompt="abc", max_new_tokens=20))
    assert texts(tmp_path / "one") == texts(tmp_path / "two")
    assert len(texts(tmp_path / "one")) == 2
    assert texts(tmp_path / "one")[0].startswith(b"    abc")


def test_sampling_leaves_training_as_it_was(tmp_path):
    models = [make_model(dropout=0.2), make_model(dropout=0.2)]
    for model, callbacks in zip(models, ([], [Samples(), *watching(), Narrator()]), strict=True):
        fit(tmp_path, *callbacks, model=model)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_samples_do_nothing_for_data_that_is_no_text_or_when_off(tmp_path):
    fit(tmp_path / "numbers", Samples(), data=Numbers())
    fit(tmp_path / "off", Samples(max_new_tokens=0))
    for name in ("numbers", "off"):
        assert "samples/text/text_summary" not in EventAccumulator(str(tmp_path / name)).Reload().Tags()["tensors"]


def test_a_prompt_outside_the_vocabulary_is_refused_before_training(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="--samples.prompt"):
        fit(tmp_path, Samples(prompt="xyz"), model=model)
    assert model.tokens_seen == 0


@pytest.mark.parametrize("wrong", [{"max_new_tokens": -1}, {"temperature": -0.5}, {"top_k": 0}])
def test_wrong_sampling_options_are_named(wrong):
    with pytest.raises(ValueError, match=f"--samples.{next(iter(wrong))}"):
        Samples(**wrong)


def test_the_narrator_tells_what_runs_how_it_goes_and_where_it_is(tmp_path, capsys):
    fit(tmp_path / "run", *watching(), Narrator(), Checkpoints(), max_steps=4)
    out = capsys.readouterr().out
    for word in ("TokenFormer", "parameters", "1 x CPU", "Letters", "bits/char", "accuracy", "tokens/s", "run"):
        assert word in out
    assert "4/4" in out
    assert "tensorboard --logdir" in out
    assert "resumed" not in out
    last = tmp_path / "run/checkpoints/last.ckpt"
    fit(tmp_path / "run", *watching(), Narrator(), Checkpoints(), ckpt_path=str(last))
    assert "resumed at step 4" in capsys.readouterr().out


def test_a_fit_limited_by_epochs_is_told_without_a_wrong_number(tmp_path, capsys):
    fit(tmp_path, *watching(), Narrator(), max_steps=-1, max_epochs=1, val_check_interval=10)
    assert "-1" not in capsys.readouterr().out.replace(str(tmp_path.parent), "")
    assert read_record(tmp_path / "record.json")["step"] == 20


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_narrator_shows_every_slice(tmp_path, capsys, stage):
    trainer = make_trainer(tmp_path, Narrator())
    getattr(trainer, stage)(make_model(), datamodule=Letters(), verbose=False)
    out = capsys.readouterr().out
    assert all(word in out for word in ("short", "long", "accuracy"))


def test_say_prints_markup_as_it_is_and_long_lines_whole(capsys):
    line = "[bold]" + "x" * 200
    say(line)
    assert capsys.readouterr().out == line + "\n"


def test_predictions_are_one_json_line_a_sequence(tmp_path):
    make_trainer(tmp_path, Predictions()).predict(make_model(), datamodule=Letters(), return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["slice"] for row in rows] == ["short"] * BATCH + ["long"] * BATCH
    assert all(len(row[key]) == SEQ_LEN for row in rows for key in ("inputs", "targets", "predictions"))
    assert Letters().decode(rows[0]["inputs"]) in json.dumps(rows[0]).encode().decode("unicode_escape")
    assert [path.name for path in tmp_path.glob("predictions*")] == ["predictions.jsonl"]


def test_predictions_that_fail_leave_no_file(tmp_path):
    class Fail(L.Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        make_trainer(tmp_path, Predictions(), Fail()).predict(
            make_model(), datamodule=Letters(), return_predictions=False
        )
    assert not list(tmp_path.glob("predictions*"))
