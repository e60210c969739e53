"""The stages around a search: where they run, what they export, what a resumed sweep may change."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from orchestrator.config.base import _ENTRIES, OneOf, Part, part
from orchestrator.config.digest import config_digest
from orchestrator.config.load import config_from_mapping, derive, dump_yaml, load_config
from orchestrator.config.training import ClassifyTask
from orchestrator.data import memory
from orchestrator.distill import student_config
from orchestrator.errors import ResourceError, RunFolderError
from orchestrator.files import read_json
from orchestrator.host import SingleWorker
from orchestrator.local_host import InProcessHost
from orchestrator.parts import build_loader
from orchestrator.pipeline import sweep
from orchestrator.placement import place
from orchestrator.recipe import run
from orchestrator.run_folder.opening import open_run
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.status import Status, StatusFile
from orchestrator.stages import prepare_sweep, train_to_end
from orchestrator.tasks.classify import Classify
from orchestrator.teacher import Teacher
from tests.images import draw

FILE = {
    "name": "digits",
    "data": {"source": {"type": "digits"}, "split": {"val": 0.1, "select": 0.1}},
    "model": {"type": "mlp", "hidden": [8]},
    "optimizer": {"type": "adamw", "lr": 0.01},
    "train": {
        "for": "6 steps",
        "batch_size": 64,
        "precision": "fp32",
        "memory_format": "contiguous",
    },
    "evaluate": {"every": "2 steps", "batch_size": 64},
    "scale": {"cpus": 1, "gpus": 0},
    "sweep": {
        "trials": 2,
        "space": {"optimizer.lr": {"type": "choice", "values": [0.01, 0.02]}},
        "sampler": {"type": "grid"},
        "scheduler": {"type": "asha", "grace": "2 steps", "reduction": 2},
    },
}


def config_of(*overrides):
    return config_from_mapping(FILE, overrides)


# --- resources -----------------------------------------------------------------------------


class Nodes(InProcessHost):
    """A host with nodes of so many cores and GPUs."""

    def __init__(self, *nodes):
        super().__init__()
        self.nodes, self.asked = nodes, 0

    def capacity(self, resources):
        self.asked += 1
        each = (resources.cpus, resources.gpus)
        places = [
            min(int(n // e) for n, e in zip(node, each, strict=True) if e) for node in self.nodes
        ]
        if sum(places) < resources.workers:
            raise ResourceError("too large")
        return sum(places) // resources.workers


@pytest.mark.parametrize(
    ("nodes", "workers", "placed"),
    [
        ([(4, 0)], 1, (4, 0)),
        ([(4, 0), (4, 0)], 1, (4, 0)),  # not the eight cores of both
        ([(4, 0), (4, 0)], 3, (2, 0)),
        ([(4, 0), (2, 0)], 2, (2, 0)),  # three of the six for each leave no place for the second
        ([(32, 4), (32, 4)], 1, (8, 1)),
        ([(64, 0), (8, 8)], 1, (1, 1)),  # cores without GPUs beside them help no GPU
        ([(1, 0), (1, 0)], 2, (1, 0)),
    ],
)
def test_a_worker_gets_no_more_cores_than_its_node_has(nodes, workers, placed):
    config = config_of(f"scale.workers={workers}", "scale.cpus=auto", "scale.gpus=auto")
    scale = place(config, Nodes(*nodes), sweep=False).scale
    assert (scale.cpus, scale.gpus) == placed


def test_a_cluster_without_bounds_is_asked_a_few_times():
    host = Nodes((2**62, 0), (96, 0))
    assert place(config_of("scale.cpus=auto"), host, sweep=False).scale.cpus == 2**62
    assert host.asked < 100


# --- preparing -----------------------------------------------------------------------------


def test_a_process_alone_prepares_micro_batches_of_the_trials_workers():
    config = config_of("scale.workers=2")
    prepared = prepare_sweep(worker=SingleWorker(), config=config)
    assert prepared.config.train.micro_batch == 32
    # What it measures are batches as the workers have them.
    loader = build_loader(config, SingleWorker())
    assert [len(one) for one in next(loader.train(0)).micro_batches] == [32, 32]


def test_where_batches_differ_the_engine_and_compiling_are_left_to_each_run():
    config = config_of("engine.type=auto", "distill={set: {train.batch_size: 8}}")
    prepared = prepare_sweep(worker=SingleWorker(), config=config).config
    assert (prepared.engine.type, prepared.train.micro_batch) == ("auto", "auto")
    # An engine that is not known yet must not be taken for one that can't be compiled.
    assert prepared.train.compile == "auto"
    alone = prepare_sweep(worker=SingleWorker(), config=config_of("engine.type=auto")).config
    assert (alone.engine.type, alone.train.micro_batch) == ("plain", 64)
    assert alone.train.compile is False


# --- a task of the user's ------------------------------------------------------------------


class RecallByClass(Metric):
    """The share of each class that is found; of no samples, nothing."""

    def __init__(self):
        super().__init__()
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, logits, label):
        self.pairs.append(torch.stack([logits.argmax(1), label], 1))

    def compute(self):
        pairs = dim_zero_cat(self.pairs) if self.pairs else torch.zeros(0, 2, dtype=torch.int64)
        found = pairs[:, 0] == pairs[:, 1]
        labels = pairs[:, 1]
        return {f"of_{k}": found[labels == k].double().mean() for k in set(labels.tolist())}


class Own(Classify):
    def __init__(self, config):
        super().__init__(ClassifyTask())

    def metrics(self, info):
        return MetricCollection({"recall": RecallByClass()})


@pytest.fixture
def own_task():
    @part("task", "own", build=Own)
    class OwnTask(Part):
        type: str = "own"
        loss: Annotated[Part, OneOf("loss")] | None = None

    yield
    del _ENTRIES["task"]["own"]


@pytest.mark.usefixtures("own_task")
def test_a_metric_whose_names_come_with_the_samples_may_be_monitored(tmp_path):
    config = config_of("task.type=own", "evaluate.monitor=val/of_3")
    config = prepare_sweep(worker=SingleWorker(), config=config).config
    steps = run(derive(config, {"sweep": None}), worker=SingleWorker(), root=tmp_path / "own")
    reported = [set(one.evaluation.values) for one in steps if one.evaluation]
    assert len(reported) == 3
    assert all({"val/of_0", "val/of_3"} < names for names in reported)
    assert 0 <= Status.read(RunPaths(tmp_path / "own").status).best.value <= 1


@pytest.mark.usefixtures("own_task")
def test_a_student_has_its_own_loss_where_the_file_has_none(tmp_path):
    config = config_of("task.type=own", "distill={temperature: 2}")
    teacher = Teacher(tmp_path, ((tmp_path, 1.0),), "probabilities")
    task = student_config(config, config.distill, teacher).task
    assert (task.type, task.temperature, task.loss.type) == ("distill", 2, "cross_entropy")


# --- trials that were stopped --------------------------------------------------------------


class Told(InProcessHost):
    """Trains one of two trials for real; the search is told values of the test's choice.

    The first trial fails at its end. The second one is the best so far, then falls behind it.
    Workers of a group are one process here, which plain PyTorch does not mind.
    """

    def __init__(self):
        super().__init__()
        self.submitted = []

    def capacity(self, resources):
        return 1

    def submit(self, call, arguments, resources):
        self.submitted.append((call.__name__, resources.workers))
        return super().submit(call, arguments, resources)

    def run_trials(self, trials, resources, concurrency):
        failing = trials.next()
        for step in (2, 4, 6):
            assert not trials.report(failing.id, report(step, 0.5))
        trials.finished(failing.id, "bad luck")
        stopped = trials.next()
        reports = stopped.call(worker=SingleWorker(), **stopped.arguments)
        for step in (2, 4):
            told = next(reports)
            assert (told["step"], told["total"]) == (step, 6)
        reports.close()
        assert not trials.report(stopped.id, report(2, 0.9))
        assert trials.report(stopped.id, report(4, 0.1))
        trials.finished(stopped.id, None)
        assert trials.next() is None


def report(step, value):
    return {"step": step, "epoch": step / 10, "values": {"val/accuracy": value}}


@pytest.mark.parametrize("overrides", [(), ("ensemble={size: 2}", "scale.workers=2")])
def test_the_best_trial_may_be_one_that_was_stopped(tmp_path, overrides):
    host, config = Told(), config_of(*overrides)
    table = sweep(config, host=host, root=tmp_path / "digits")
    best = RunPaths(tmp_path / "digits").trial("001")
    assert table.line("best single").folder == str(best.root)
    assert Status.read(best.status).state == "pruned"
    assert best.model_json.exists()
    assert (table.line("ensemble") is not None) == bool(config.ensemble)
    # By as many workers as trained it: each may hold a part of its checkpoint.
    exports = [workers for name, workers in host.submitted if name == "export_stopped"]
    assert exports == [config.scale.workers]


# --- a sweep that goes on ------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A sweep whose ensemble is chosen and whose student is trained."""
    paths = RunPaths(tmp_path / "digits")
    config = config_of("ensemble={size: 3}", "distill={temperature: 2}")
    digest, text = config_digest(config), dump_yaml(config)
    with open_run(paths, digest=digest, config_yaml=text, resume=False, kind="sweep") as opened:
        opened.status.finish("interrupted", "by SIGINT")
    paths.ensemble.mkdir()
    paths.ensemble_json.write_text("{}")
    with open_run(paths.student, digest="", config_yaml="", resume=False) as student:
        student.status.finish("done", "all 6 steps trained")
    return paths


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["ensemble={size: 5}", "distill={temperature: 2}"], "ensemble.size: 3 -> 5"),
        (["ensemble={size: 3}", "distill={temperature: 4}"], r"distill.temperature: 2.0 -> 4.0"),
        (["ensemble={size: 3}"], r"distill.temperature: 2.0 -> \(absent\)"),
    ],
)
def test_what_made_a_result_stays_as_it_was(begun, overrides, difference):
    before = begun.status.read_bytes(), begun.config.read_bytes()
    with pytest.raises(RunFolderError, match=difference) as caught:
        sweep(config_of(*overrides), host=InProcessHost(), root=begun.root, resume=True)
    assert caught.value.exit_code == 2
    assert (begun.status.read_bytes(), begun.config.read_bytes()) == before


def test_what_made_no_result_yet_may_change(begun):
    class Ends(InProcessHost):
        def run_trials(self, trials, resources, concurrency):
            raise KeyboardInterrupt

    begun.ensemble_json.unlink()
    student = Status.read(begun.student.status)
    StatusFile(begun.student.status, student).finish("interrupted", "by SIGINT")
    changed = config_of("ensemble={size: 5}", "distill={temperature: 2, baseline: false}")
    with pytest.raises(KeyboardInterrupt):
        sweep(changed, host=Ends(), root=begun.root, resume=True)
    earlier = load_config(begun.config)
    assert (earlier.ensemble.size, earlier.distill.baseline) == (5, False)


def test_a_student_that_has_begun_says_itself_what_differs(tmp_path):
    class Interrupted(InProcessHost):
        """Whose student is taken back in its first step."""

        def submit(self, call, arguments, resources):
            if call is not train_to_end:
                return super().submit(call, arguments, resources)
            job = {name: arguments[name] for name in ("config", "root", "group", "job_type")}
            steps = run(worker=SingleWorker(), **job)
            next(steps)
            steps.close()
            raise KeyboardInterrupt

    asked = "distill={temperature: 2, baseline: false}"
    root = tmp_path / "digits"
    with pytest.raises(KeyboardInterrupt):
        sweep(config_of(asked), host=Interrupted(), root=root)
    assert Status.read(RunPaths(root).student.status).state == "interrupted"
    changed = config_of("distill={temperature: 4, baseline: false}")
    with pytest.raises(RunFolderError, match=r"student was .*\n  task\.temperature: 2\.0 -> 4\.0"):
        sweep(changed, host=InProcessHost(), root=root, resume=True)
    table = sweep(config_of(asked), host=InProcessHost(), root=root, resume=True)
    assert table.line("student") is not None


def test_a_search_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    class Anew(InProcessHost):
        """A process that knows no data yet."""

        def submit(self, call, arguments, resources):
            memory._memory.clear()
            return super().submit(call, arguments, resources)

    class Ends(Anew):
        def run_trials(self, trials, resources, concurrency):
            raise KeyboardInterrupt

    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    paths, images = RunPaths(tmp_path / "sweep"), tmp_path / "images"
    draw(images, 0, 12)
    source = {"type": "image_folder", "path": str(images), "size": 8, "channels": 1}
    config = config_of(f"data.source={json.dumps(source)}", "data.split={val: 0.25, select: 0.25}")
    with pytest.raises(KeyboardInterrupt):
        sweep(config, host=Ends(), root=paths.root)
    assert read_json(paths.env)["seeds"] == {"seed": config.seed, "split": config.data.split.seed}
    before = paths.env.read_bytes(), paths.config.read_bytes()
    draw(images, 12, 3)
    other = r"data changed since the sweep .*\n  data\.digest: .*\n  data\.split_digest: "
    with pytest.raises(RunFolderError, match=other):
        sweep(config, host=Anew(), root=paths.root, resume=True)
    assert (paths.env.read_bytes(), paths.config.read_bytes()) == before
    assert not paths.trials.exists(), "a trial was begun"
    for folder in ("cat", "dog"):
        for number in range(12, 15):
            (images / folder / f"{number}.png").unlink()
    with pytest.raises(KeyboardInterrupt):
        sweep(config, host=Ends(), root=paths.root, resume=True)


@pytest.mark.parametrize("engine", ["plain", "auto"])
def test_trials_and_students_with_other_batches_cut_their_own(tmp_path, engine):
    config = config_of(
        f"engine.type={engine}",
        "sweep.space={train.batch_size: {type: choice, values: [64, 16]}}",
        "sweep.scheduler={type: none}",
        "distill={set: {train.batch_size: 8}}",
    )
    sweep(config, host=InProcessHost(), root=tmp_path / "digits")
    paths = RunPaths(tmp_path / "digits")
    runs = [*(paths.trial(number) for number in range(2)), paths.student]
    made = [load_config(run.config) for run in runs]
    assert {one.engine.type for one in made} == {"plain"}
    trained = [one.train for one in made]
    assert sorted(one.batch_size for one in trained) == [8, 16, 64]
    assert all(one.micro_batch == one.batch_size for one in trained)
    assert not any(one.compile for one in trained)
