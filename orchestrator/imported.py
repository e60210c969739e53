"""What can be said of a network of the user's own before it trains."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.data.types import DataInfo
from orchestrator.errors import ConfigError
from orchestrator.networks import build_network
from orchestrator.plan.profile import pretended_batch
from orchestrator.tasks.base import Task


def check_outputs(config: ExperimentConfig, task: Task, info: DataInfo) -> None:
    """Refuses an imported network whose outputs are not as many as the task needs.

    A loss takes more outputs than there are classes without complaint. The network runs on the
    meta device, without numbers; one that needs them is left to its first step.

    Raises:
        ConfigError: with both numbers.
    """
    if config.model.type != "import" or task.per_token:
        return
    needed = task.outputs(info)
    try:
        with torch.device("meta"), torch.no_grad():
            network = build_network(config.model, outputs=needed, shape=info.shape, load=False)  # type: ignore[arg-type]
            found = Task.forward(task, network.eval(), pretended_batch(task, info, 2))
    except Exception:
        return
    logits = found[0] if isinstance(found, tuple) else found
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] != needed:
        raise ConfigError(
            f"the model gives {logits.shape[1]} outputs, but the task needs {needed}; let its "
            "constructor take the number by `args`, as $outputs"
        )
