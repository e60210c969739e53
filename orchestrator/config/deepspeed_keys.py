"""DeepSpeed's own top-level keys, for experts' raw block; known here so that a typo is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import suggest

OURS: Mapping[str, str] = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "the `optimizer` section",
    "scheduler": "the `schedule` section",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "communication_data_type": "engine.compression",
    "checkpoint": "the `checkpoint` section",
    "elasticity": "scale.workers",
    "pipeline": "engine.type: pipeline",
    "zero_allow_untested_optimizer": "nothing: it is always on",
    "zero_force_ds_cpu_optimizer": "engine.offload",
}
"""Keys that the rest of the file decides, and what decides them."""

KNOWN = (
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "compile",
    "compression_training",
    "csv_monitor",
    "data_types",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "wall_clock_breakdown",
    "zero_optimization",
)
"""Keys that a raw block may set (of DeepSpeed's configuration reference)."""

ZERO_OURS: Mapping[str, str] = {
    "stage": "engine.zero_stage",
    "offload_optimizer": "engine.offload",
    "offload_param": "engine.offload",
    "cpu_offload": "engine.offload",
    "stage3_param_persistence_threshold": "engine.persist_below",
}
"""The same inside `zero_optimization`."""


def problems_of(raw: Mapping[str, Any]) -> Iterator[str]:
    """What can't stand in a raw block, and what to write instead."""
    for key in raw:
        if key in OURS:
            yield f"{key} can't stand in the raw block; it follows from {OURS[key]}"
        elif key not in KNOWN:
            yield f"unknown key {key!r} of DeepSpeed; {suggest(key, KNOWN)}"
    zero = raw.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield "zero_optimization must be a mapping"
        return
    for key in zero:
        if key in ZERO_OURS:
            yield f"zero_optimization.{key} can't stand in the raw block; set {ZERO_OURS[key]}"


def merged(settings: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a raw block's values in place of theirs, mapping by mapping."""
    result = dict(settings)
    for key, value in raw.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
