"""Random predictions and run folders that tests choose from."""

from dataclasses import replace

import numpy as np

from orchestrator.files import write_json
from orchestrator.run_folder.model_file import ModelSpec
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Predictions, write_predictions


def draw(seed, samples=40, classes=4, skill=1.0, labels=None):
    """Logits that lean towards the label by `skill`."""
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = np.random.default_rng(99).integers(0, classes, samples)
    logits = rng.normal(size=(samples, classes))
    logits[np.arange(samples), labels] += skill
    return Predictions(np.arange(samples), labels, logits.astype(np.float32))


SPEC = ModelSpec(
    model={"type": "none"},
    outputs=4,
    shape=(1, 8, 8),
    mean=(0.5,),
    std=(0.25,),
    label_names=("a", "b", "c", "d"),
    data_digest="d" * 64,
    split_digest="5" * 64,
)


def make_run(root, predictions, **changes):
    """A run folder as far as ensembles look into it."""
    paths = RunPaths(root)
    for split in ("select", "val"):
        write_predictions(paths.predictions(split), predictions)
    paths.model.write_bytes(b"weights of " + root.name.encode())
    write_json(paths.model_json, replace(SPEC, **changes).to_json())
    return root
