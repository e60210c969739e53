"""When a run is evaluated, saved and stopped, and by what."""

import json
import math

import pytest
import torch
from torchmetrics import ClasswiseWrapper, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from orchestrator import api, finish
from orchestrator.config.load import config_from_mapping
from orchestrator.config.training import ClassifyTask, EarlyStoppingConfig
from orchestrator.data.types import DataInfo
from orchestrator.errors import ConfigError
from orchestrator.evaluate import check_monitor
from orchestrator.hooks import EarlyStopping, KeepBest
from orchestrator.loop import Evaluation, RunState, Signal, StepInfo
from orchestrator.tasks.classify import Classify


def test_evaluations_and_checkpoints_fall_on_parts_of_epochs(tmp_path):
    config = config_from_mapping(
        {
            "name": "parts",
            "data": {"source": {"type": "digits"}},
            "model": {"type": "mlp", "hidden": [8]},
            "scale": {"cpus": 1, "gpus": 0},
            "train": {
                "for": "3 epochs",
                "batch_size": 60,
                "precision": "fp32",
                "memory_format": "contiguous",
            },
            "evaluate": {"every": "0.5 epochs"},
            "checkpoint": {"every": "0.75 epochs", "keep_last": 100, "keep_best": 0},
        }
    )
    epoch = api.plan(config).steps_per_epoch
    assert epoch % 2, "half of it must be no whole step"
    run = api.train(config, runs_dir=tmp_path).root
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if line["split"] == "val"]
    assert [line["step"] for line in evaluated] == [round(k * epoch / 2) for k in range(1, 7)]
    assert [line["epoch"] for line in evaluated][1::2] == [1, 2, 3]
    saved = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.is_dir())
    assert saved == [round(k * 0.75 * epoch) for k in range(1, 5)]


# --- the best evaluation -------------------------------------------------------------------


def bare_run():
    """What hooks write to; those here ask for none of its parts."""
    parts = dict.fromkeys(("engine", "task", "loader", "worker", "schedule", "evaluate", "save"))
    return RunState(**parts, lr=0.1, total_steps=100, hooks=())


def evaluated(step, value):
    found = Evaluation("val", {"val/loss": value})
    return StepInfo(step, 100, step / 10, torch.zeros(()), 0.1, 4, evaluation=found)


@pytest.mark.parametrize(("mode", "values"), [("min", (2.0, 3.0, 1.0)), ("max", (2.0, 1.0, 3.0))])
def test_nan_is_never_the_best(mode, values):
    hook, run = KeepBest("val/loss", mode), bare_run()
    assert hook(evaluated(1, math.nan), run) == Signal.NONE
    assert run.best is None
    signals = [hook(evaluated(step, value), run) for step, value in enumerate(values, start=2)]
    assert signals == [Signal.CHECKPOINT, Signal.NONE, Signal.CHECKPOINT]
    assert hook(evaluated(5, math.nan), run) == Signal.NONE
    assert (run.best["step"], run.best["value"]) == (4, values[-1])


def stopping(*values, patience=2):
    """After how many evaluations early stopping ends a run, and why."""
    hook, run = EarlyStopping(EarlyStoppingConfig(patience=patience), "val/loss", "min"), bare_run()
    for step, value in enumerate(values, start=1):
        if hook(evaluated(step, value), run):
            return step, run.stop_reason
    return None


def test_nan_counts_as_no_improvement():
    never = "val/loss was no number in 2 evaluations"
    assert stopping(math.nan, math.nan, 1.0) == (2, never)
    # The first number is an improvement on NaN, and patience begins anew.
    last = "val/loss did not improve on 1 in 2 evaluations"
    assert stopping(math.nan, 1.0, 1.5, math.nan, 0.5) == (4, last)
    assert stopping(math.nan, 1.0, math.nan, 0.5, 0.4) is None


# --- the monitored metric ------------------------------------------------------------------


def info(classes):
    return DataInfo((1, 4, 4), tuple("abcdefgh"[:classes]), (0.0,), (1.0,), {"val": 8}, "", "")


class Judged(Classify):
    """Classification judged by metrics of a user's own."""

    def __init__(self, **metrics):
        super().__init__(ClassifyTask())
        self._metrics = metrics

    def metrics(self, info):
        return MetricCollection(self._metrics)


def test_a_metric_that_is_not_reported_is_refused():
    task = Classify(ClassifyTask())
    for name in ("accuracy", "nll", "loss"):
        check_monitor(f"val/{name}", task, info(5))
    check_monitor("val/top5", task, info(6))
    wanted = r"evaluate.monitor: .* report no 'top5'; choose one of: accuracy, loss, nll"
    with pytest.raises(ConfigError, match=wanted):
        check_monitor("val/top5", task, info(5))
    own = Judged(macro=MulticlassAccuracy(5))
    check_monitor("val/macro", own, info(5))
    with pytest.raises(ConfigError, match="choose one of: loss, macro"):
        check_monitor("val/accuracy", own, info(5))


def test_a_metric_with_several_values_may_be_monitored_by_one_of_them():
    each = ClasswiseWrapper(MulticlassAccuracy(3, average=None), labels=["a", "b", "c"])
    task = Judged(each=each)
    check_monitor("val/multiclassaccuracy_b", task, info(3))
    with pytest.raises(ConfigError, match="'multiclassaccuracy_c'"):
        check_monitor("val/multiclassaccuracy_d", task, info(3))


def test_where_a_metric_needs_samples_the_first_evaluation_tells():
    check_monitor("val/accuracy", Judged(auroc=MulticlassAUROC(3)), info(3))
    with pytest.raises(ConfigError, match=r"evaluate.monitor: .* no 'accuracy'; .* loss"):
        KeepBest("val/accuracy", "max")(evaluated(1, 0.5), bare_run())


def test_a_run_that_could_not_tell_its_best_model_is_refused_before_it_begins(tmp_path):
    config = config_from_mapping(
        {
            "name": "few",
            "data": {"source": {"type": "synthetic", "classes": 3, "samples": 60, "size": 8}},
            "model": {"type": "mlp", "hidden": [8]},
            "scale": {"cpus": 1, "gpus": 0},
            "train": {"precision": "fp32", "memory_format": "contiguous"},
            "evaluate": {"monitor": "val/top5"},
        }
    )
    for refused in (lambda: api.plan(config), lambda: api.train(config, runs_dir=tmp_path)):
        with pytest.raises(
            ConfigError, match="report no 'top5'; choose one of: accuracy, loss, nll"
        ):
            refused()
    assert not list(tmp_path.iterdir())


STOPPED = {
    "name": "stopped",
    "data": {"source": {"type": "digits"}},
    "model": {"type": "mlp", "hidden": [8]},
    "scale": {"cpus": 1, "gpus": 0},
    "train": {
        "for": "20 steps",
        "batch_size": 60,
        "precision": "fp32",
        "memory_format": "contiguous",
        # Accuracy can't rise by two: the third evaluation is the last one.
        "early_stopping": {"patience": 2, "min_delta": 2.0},
    },
    "evaluate": {"every": "3 steps"},
    "checkpoint": {"every": "4 steps"},
}


def test_a_stopped_run_whose_export_was_interrupted_trains_no_further(tmp_path, monkeypatch):
    config = config_from_mapping(STOPPED)
    whole = api.train(config, runs_dir=tmp_path / "whole")
    assert whole.step == 9 and "did not improve" in whole.why

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "export", interrupted)
        api.train(config, runs_dir=tmp_path / "half")
    found = api.train(config, runs_dir=tmp_path / "half", resume=True)
    assert (found.step, found.why, found.best) == (whole.step, whole.why, whole.best)
    models = [(one.root / "model.safetensors").read_bytes() for one in (whole, found)]
    assert models[0] == models[1]
