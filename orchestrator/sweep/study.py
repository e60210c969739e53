"""The durable study (SQLite, as optuna-dashboard opens it), and what makes it the same search."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from orchestrator.config.digest import config_digest, digest_difference
from orchestrator.config.dump import plain
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.pipeline import SweepConfig
from orchestrator.errors import ConfigError, RunFolderError


def open_study(config: ExperimentConfig, path: Path) -> optuna.Study:
    """Opens the study of a sweep, or creates it.

    Raises:
        RunFolderError: if the file holds a study of another search, with what differs, or is
            no study.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = load_study(path) if path.exists() else None
    if found is None:
        maximise = config.evaluate.mode == "max"
        found = optuna.create_study(
            storage=RDBStorage(_url(path)),
            study_name=config.name,
            direction="maximize" if maximise else "minimize",
        )
    attributes = found.user_attrs
    if "digest" not in attributes:
        # The digest is written last: a study without one has no trial yet.
        found.set_user_attr("search", _search(config))
        found.set_user_attr("experiment", plain(config))
        found.set_user_attr("digest", config_digest(config))
        return found
    _check_same(path, config, attributes)
    return found


def load_study(path: Path) -> optuna.Study | None:
    """Opens an existing study to read it; None when its file holds none yet.

    Raises:
        RunFolderError: if there is no such file or it is no study.
    """
    if not path.is_file():
        raise RunFolderError(f"{path.parent} is not a sweep: {path.name} is missing")
    try:
        storage = RDBStorage(_url(path))
        names = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=names[0], storage=storage) if names else None
    except Exception as error:  # whatever SQLAlchemy, Alembic or SQLite raise on a foreign file
        raise RunFolderError(
            f"{path} is not an Optuna study ({type(error).__name__}: {error}); "
            "move it away or choose name=…"
        ) from error


def trial_id(number: int) -> str:
    """The id of a trial, and the name of its folder, such as ``007``."""
    return f"{number:03d}"


def better(value: float, than: float | None, mode: str) -> bool:
    """Whether `value` beats `than` under a mode of ``max`` or ``min``; anything beats None."""
    return than is None or (value > than if mode == "max" else value < than)


def best_value(trial: optuna.trial.FrozenTrial, mode: str) -> float | None:
    """The best monitored value that a trial reported."""
    values = trial.intermediate_values.values()
    return (max if mode == "max" else min)(values, default=None)


def sweep_of(config: ExperimentConfig) -> SweepConfig:
    """The file's sweep section.

    Raises:
        ConfigError: if it has none.
    """
    if config.sweep is None:
        raise ConfigError("this file has no sweep section; add one with `trials` and `space`")
    return config.sweep


def _url(path: Path) -> str:
    return f"sqlite:///{path.resolve()}"


def _search(config: ExperimentConfig) -> dict[str, Any]:
    sweep = sweep_of(config).model_dump(mode="json")
    return {
        **_flat({name: sweep[name] for name in ("space", "sampler", "scheduler")}, "sweep."),
        "evaluate.monitor": config.evaluate.monitor,
        "evaluate.mode": config.evaluate.mode,
        "evaluate.every": str(config.evaluate.every),
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.")
    return flat


def _check_same(path: Path, config: ExperimentConfig, attributes: Mapping[str, Any]) -> None:
    lines = _difference(attributes["search"], _search(config))
    if attributes["digest"] != config_digest(config):
        lines += digest_difference(
            ExperimentConfig.model_validate(attributes["experiment"]), config
        )
    if lines:
        raise RunFolderError(
            f"{path.parent} holds another search; choose name=…, or undo these changes:\n"
            + "\n".join(f"  {line}" for line in lines)
        )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted({*before, *now}):
        old, new = (json.dumps(side[key]) if key in side else "(absent)" for side in (before, now))
        if old != new:
            lines.append(f"{key}: {old} -> {new}")
    return lines
