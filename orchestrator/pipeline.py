"""Sweep → ensemble → distil → table, over the Host protocol: it knows nothing of Ray.

Every stage leaves its result in the sweep's folder, and is passed over when it is there already;
so a pipeline that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import auto, distill
from orchestrator.config.digest import config_digest, digest_difference, section_difference
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive, dump_yaml, load_config
from orchestrator.config.user_code import named_modules
from orchestrator.ensemble.build import build_ensemble
from orchestrator.errors import TrialError
from orchestrator.files import write_json
from orchestrator.host import Host, Pending, TrialJob
from orchestrator.placement import place, resources_of
from orchestrator.predict import predict_run
from orchestrator.run_folder.code import keep_code
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.environment import describe_environment
from orchestrator.run_folder.opening import (
    OpenedRun,
    another_configuration,
    note_environment,
    open_run,
    other_data,
)
from orchestrator.run_folder.paths import RunPaths, Target
from orchestrator.run_folder.status import Status, StatusFile
from orchestrator.seeding import TRIAL
from orchestrator.seeding import derive as derive_seed
from orchestrator.stages import Prepared, export_stopped, prepare_sweep, train_to_end, trial
from orchestrator.sweep.events import SweepEvent
from orchestrator.sweep.leaderboard import Row, leaderboard, write_leaderboard
from orchestrator.sweep.planner import Planner, TrialSpec
from orchestrator.table import Line, Table, ensemble_line, run_line
from orchestrator.teacher import find_teacher
from orchestrator.tracking.base import track_ensemble


@dataclass(frozen=True)
class StageEvent:
    """A stage began (`done` False) or ended.

    Attributes:
        name: prepare, search, ensemble, teacher, student, baseline or test.
        message: a sentence for people.
        folders: run folders whose progress can be watched.
        trials: the leaderboard so far: at the start of a search what an earlier attempt left,
            at its end all.
    """

    name: str
    done: bool
    message: str
    folders: tuple[Path, ...] = ()
    trials: tuple[Row, ...] = ()


Listener = Callable[[SweepEvent | StageEvent], None]


def sweep(
    config: ExperimentConfig,
    *,
    host: Host,
    root: Path,
    resume: bool = False,
    listen: Listener = lambda event: None,
) -> Table:
    """Runs a file's whole pipeline in the sweep's folder.

    Returns:
        The comparison on the test split: best single, ensemble, student, baseline.

    Raises:
        UserError: for anything in file, folder or resources that the user can mend.
        TrialError: if no trial finished, or a stage failed.
    """
    paths = RunPaths(root)
    if paths.status.exists() and paths.config.exists():
        earlier = load_config(paths.config, kept_code=False)
        if resume:
            _check_made(paths, earlier, config)
        config = auto.adopt(config, earlier)
    config = place(config, host, sweep=True)
    opened = open_run(
        paths,
        digest=config_digest(config),
        config_yaml=dump_yaml(config),
        resume=resume,
        difference=digest_difference,
        kind="sweep",
    )
    with opened, _noting_the_end(opened):
        keep_code(paths, named_modules(config))
        return _Pipeline(config, host, paths, opened, listen).run()


def _check_made(paths: RunPaths, earlier: ExperimentConfig, config: ExperimentConfig) -> None:
    """Refuses other settings of a stage whose result is there, and would not be made again."""
    # A student that has only begun is compared by its own folder, as any run that goes on.
    made = {"ensemble": paths.ensemble_json.exists(), "distill": _is_done(paths.student.root)}
    lines = [
        line
        for name, is_made in made.items()
        if is_made
        for line in section_difference(earlier, config, name)
    ]
    if lines:
        raise another_configuration(paths, "sweep", lines)


@contextlib.contextmanager
def _noting_the_end(opened: OpenedRun) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        opened.status.finish("interrupted", "interrupted; --resume goes on")
        raise
    except BaseException as error:
        opened.status.finish("failed", str(error) or type(error).__name__)
        raise
    opened.status.finish("done", "every stage is done")


class _Pipeline:
    """One pass through the stages; each method is a stage."""

    def __init__(
        self,
        config: ExperimentConfig,
        host: Host,
        paths: RunPaths,
        opened: OpenedRun,
        listen: Listener,
    ) -> None:
        self._config, self._host, self._paths = config, host, paths
        self._opened, self._listen = opened, listen
        self._resources = resources_of(config)
        # Predictions need one worker, however many train.
        self._single = replace(self._resources, workers=1)

    def run(self) -> Table:
        prepared = self._prepare()
        rows = self._search(prepared)
        ranked = [row for row in rows if row.value is not None and row.state != "failed"]
        if not ranked:
            why = "; ".join(f"{row.id}: {row.why}" for row in rows if row.why)
            raise TrialError(f"no trial finished ({why or 'none was started'})")
        lines = [("best single", self._paths.trial(ranked[0].id).root)]
        if self._config.ensemble:
            self._ensemble(ranked)
            lines.append(("ensemble", self._paths.ensemble))
        self._export([self._paths.trial(ranked[0].id).root])
        if self._config.distill:
            lines += self._distill(ranked[0])
        return self._compare(lines, prepared)

    # --- stages ----------------------------------------------------------------------------

    def _prepare(self) -> Prepared:
        """Reads the data and resolves `auto`, once for all trials.

        Raises:
            RunFolderError: if the sweep was begun with other data: what the search knows of its
                trials, and whom an ensemble is made of, goes by these.
        """
        self._say("prepare", False, "reading the data, measuring what is fastest here")
        prepared: Prepared = self._submit(prepare_sweep, {"config": self._config}).result()
        digests = prepared.data_digest, prepared.split_digest
        if refusal := other_data(self._paths, "sweep", *digests):
            raise refusal
        seeds = {"seed": self._config.seed, "split": self._config.data.split.seed}
        note_environment(self._opened, describe_environment(seeds, *digests))
        self._config = prepared.config
        self._opened.reconfigure(config_digest(prepared.config), dump_yaml(prepared.config))
        for note in prepared.notes:
            self._opened.events.record("prepare", note)
        self._say("prepare", True, "; ".join(prepared.notes) or "ready")
        return prepared

    def _search(self, prepared: Prepared) -> list[Row]:
        assert self._config.sweep is not None
        planner = Planner(
            self._config,
            self._paths,
            prepared.steps_per_epoch,
            prepared.total_steps,
            self._job,
            self._listen,
        )
        wanted = self._config.sweep.concurrency
        room = self._host.capacity(self._resources)
        concurrency = room if wanted == "auto" else min(wanted, room)
        before = [row for row in leaderboard(self._paths) if row.state != "running"]
        left = f", {len(before)} of them done before" if before else ""
        self._say(
            "search",
            False,
            f"{planner.planned} trials, {concurrency} at once{left}",
            trials=tuple(before),
        )
        self._host.run_trials(planner, self._resources, concurrency)
        rows = leaderboard(self._paths)
        self._mark_pruned(rows)
        write_leaderboard(self._paths, rows)
        finished = sum(row.state == "complete" for row in rows)
        self._say("search", True, f"{finished} trials finished", trials=tuple(rows))
        return rows

    def _job(self, spec: TrialSpec) -> TrialJob:
        # Each trial starts from weights of its own and sees the data in an order of its own:
        # members of an ensemble that err alike gain nothing from each other.
        changes = {
            "seed": derive_seed(self._config.seed, TRIAL, int(spec.id)) % 2**32,
            **spec.overrides,
            "name": f"{self._config.name}-{spec.id}",
            "sweep": None,
            "ensemble": None,
            "distill": None,
        }
        config = derive(self._config, changes)
        arguments = {
            "config": config,
            "root": spec.folder,
            "resume": spec.resume,
            "group": self._config.name,
        }
        return TrialJob(spec.id, trial, arguments)

    def _mark_pruned(self, rows: list[Row]) -> None:
        """A stopped trial can't know why; the search does."""
        for row in rows:
            path = self._paths.trial(row.id).status
            status = Status.read(path)
            if row.state == "pruned" and status and status.state != "pruned":
                StatusFile(path, status).finish("pruned", row.why or "stopped by the scheduler")

    def _ensemble(self, ranked: list[Row]) -> None:
        config = self._config.ensemble
        assert config is not None
        if self._paths.ensemble_json.exists():
            return
        self._say("ensemble", False, "choosing members on the select split")
        near = ranked[: max(2 * config.size, 10)]
        folders = [self._paths.trial(row.id).root for row in near]
        self._export(folders)
        chosen = build_ensemble(folders, config, self._paths.ensemble)
        track_ensemble(
            self._config,
            RunPaths(self._paths.ensemble),
            [RunPaths(member.path) for member in chosen.members],
            {f"select/{name}": value for name, value in chosen.select.items()},
            group=self._config.name,
        )
        self._say("ensemble", True, f"{len(chosen.members)} of {len(folders)} candidates")

    def _export(self, trials: list[Path]) -> None:
        """Exports those of the trials that were stopped: they have checkpoints alone."""
        stopped = [root for root in trials if not RunPaths(root).model_json.exists()]
        # Where each worker holds a part of the model, a checkpoint is read by as many.
        _all_results(
            [self._host.submit(export_stopped, {"root": one}, self._resources) for one in stopped]
        )

    def _distill(self, best: Row) -> list[tuple[str, Path]]:
        section = self._config.distill
        assert section is not None
        kind, folder = "run", self._paths.trial(best.id).root
        if self._paths.ensemble_json.exists():
            kind, folder = "ensemble", self._paths.ensemble
        teacher = find_teacher(Target(kind, folder))  # type: ignore[arg-type]
        stored = RunPaths(teacher.folder).predictions("train").exists()
        if section.teacher_sees == "plain" and not stored:
            self._say("teacher", False, f"asking {len(teacher.members)} members about train")
            roots = [root for root, _ in teacher.members]
            distill.write_soft_targets(teacher, self._all(predict_run, roots, split="train"))
            self._say("teacher", True, "soft targets written")
        student = distill.student_config(self._config, section, teacher)
        jobs = [("student", self._paths.student.root, student)]
        if section.baseline:
            baseline = distill.baseline_config(self._config, section)
            jobs.append(("baseline", self._paths.baseline.root, baseline))
        self._train([job for job in jobs if not _is_done(job[1])])
        return [(name, root) for name, root, _ in jobs]

    def _train(self, jobs: list[tuple[str, Path, ExperimentConfig]]) -> None:
        if not jobs:
            return
        names = " and ".join(name for name, _, _ in jobs)
        self._say("student", False, f"training {names}", tuple(root for _, root, _ in jobs))
        pending = []
        for name, root, config in jobs:
            arguments = {
                "config": config,
                "root": root,
                "group": self._config.name,
                "job_type": name,
            }
            pending.append(self._host.submit(train_to_end, arguments, self._resources))
        results = _all_results(pending)
        self._say("student", True, ", ".join(f"{r.root.name}: {r.why}" for r in results))

    def _compare(self, lines: list[tuple[str, Path]], prepared: Prepared) -> Table:
        """Reads the test split, once, with every model of the table."""
        split = "test" if prepared.sizes.get("test") else "select"
        roots: list[Path] = []
        for _, folder in lines:
            roots += _members(folder) if (folder / "ensemble.json").exists() else [folder]
        self._say("test", False, f"reading {split} with {len(set(roots))} models")
        self._all(predict_run, list(dict.fromkeys(roots)), split=split)
        table = Table(split, tuple(self._line(name, folder, split) for name, folder in lines))
        write_json(self._paths.sweep_json, table.to_json() | {"name": self._config.name})
        self._say("test", True, "done")
        return table

    def _line(self, name: str, folder: Path, split: str) -> Line:
        if (folder / "ensemble.json").exists():
            return ensemble_line(name, folder, split)
        return run_line(name, folder, split)

    # --- helpers ---------------------------------------------------------------------------

    def _submit(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Pending:
        return self._host.submit(call, arguments, self._single)

    def _all(self, call: Callable[..., Any], roots: list[Path], **rest: Any) -> list[Any]:
        """Runs one call for each folder, as many at once as fit."""
        return _all_results([self._submit(call, {"root": root, **rest}) for root in roots])

    def _say(
        self,
        name: str,
        done: bool,
        message: str,
        folders: tuple[Path, ...] = (),
        trials: tuple[Row, ...] = (),
    ) -> None:
        self._listen(StageEvent(name, done, message, folders, trials))


def _all_results(pending: list[Pending]) -> list[Any]:
    """Waits for all; when one fails, the others are cancelled and its error is raised."""
    try:
        return [one.result() for one in pending]
    except BaseException:
        for one in pending:
            one.cancel()
        raise


def _members(folder: Path) -> list[Path]:
    return [member.path for member in read_ensemble(folder).members]


def _is_done(root: Path) -> bool:
    status = Status.read(RunPaths(root).status)
    return status is not None and status.state == "done"
