"""What a version saw when it was trained: a run's own statistics, or an ensemble's."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from orchestrator.ensemble.combine import combine
from orchestrator.errors import OrchError
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.model_file import read_spec
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import read_predictions
from orchestrator.run_folder.statistics import CONFIDENCE, Statistics, make_statistics
from orchestrator.run_folder.statistics import read_statistics as _read

_LOG = logging.getLogger(__name__)


def past_of(root: Path) -> Statistics | None:
    """The statistics of a run or ensemble folder; None if they were not kept, or are damaged.

    An ensemble's inputs are its members'; its answers are computed from theirs to the same split.
    """
    try:
        if RunPaths(root).kind == "ensemble":
            return _of_ensemble(root)
        return _of_run(root)
    except OrchError as error:
        _LOG.warning("requests are not compared with the training data: %s", error)
        return None


def _of_run(root: Path) -> Statistics | None:
    found = _read(root)
    if found is None:
        return None
    spec = read_spec(root)
    return dataclasses.replace(found, tokenizer=spec.tokenizer, text_length=spec.shape[0])


def _of_ensemble(root: Path) -> Statistics | None:
    ensemble = read_ensemble(root)
    first = _of_run(ensemble.members[0].path)
    if first is None:
        return None
    answers = [
        read_predictions(RunPaths(one.path).predictions(first.split)) for one in ensemble.members
    ]
    mean = combine(answers, ensemble.weights, ensemble.combine)
    own = make_statistics(
        {}, mean, answers[0].labels, data_digest=first.data_digest, split=first.split
    )
    columns = {**first.columns, CONFIDENCE: own.columns[CONFIDENCE]}
    return dataclasses.replace(own, columns=columns)
