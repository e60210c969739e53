"""The raw block for DeepSpeed, and what may be kept off the device."""

import importlib.util
import re
from pathlib import Path

import pytest

from orchestrator.config.deepspeed_keys import KNOWN, OURS, merged
from orchestrator.config.load import config_from_mapping
from orchestrator.errors import ConfigError

FILE = {
    "name": "x",
    "data": {"source": {"type": "digits"}},
    "model": {"type": "resnet18"},
    "train": {"for": "4 epochs"},
}


def problems(engine, *overrides):
    try:
        config_from_mapping(FILE | {"engine": {"type": "deepspeed"} | engine}, overrides)
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"deepspeed": {"wall_clock_braekdown": True}}, "did you mean 'wall_clock_breakdown'?"),
        ({"deepspeed": {"train_batch_size": 8}}, "it follows from train.batch_size"),
        ({"deepspeed": {"fp16": {"enabled": True}}}, "it follows from train.precision"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "set engine.zero_stage"),
        ({"deepspeed": {"zero_optimization": 2}}, "must be a mapping"),
        ({"offload": {}}, "offload of the optimizer needs zero_stage >= 1, but got 0"),
        ({"zero_stage": 2, "offload": {"parameters": "cpu"}}, "needs zero_stage >= 3, but got 2"),
        (
            {"zero_stage": 2, "offload": {"optimizer": "nvme", "path": "/mnt"}},
            "to nvme needs zero_stage >= 3",
        ),
        ({"zero_stage": 3, "offload": {"parameters": "nvme"}}, "nvme needs `path`"),
        ({"compression": "int8"}, "'none', 'bf16' or 'fp16'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(engine, said):
    found = problems(engine)
    assert len(found) == 1
    assert said in found[0]


def test_what_fits_is_taken():
    assert not problems({"zero_stage": 2, "offload": {}, "compression": "bf16"})
    assert not problems({"deepspeed": {"zero_optimization": {"overlap_comm": False}}})


@pytest.mark.parametrize("name", ["adagrad", "lamb", "lars"])
def test_optimizers_that_need_whole_tensors_are_not_sharded(name):
    found = problems({"zero_stage": 1}, f"optimizer={{type: {name}}}")
    assert len(found) == 1
    assert f"optimizer.type: {name} needs every parameter whole" in found[0]
    assert not problems({"zero_stage": 0}, f"optimizer={{type: {name}}}")


def test_the_raw_block_wins_mapping_by_mapping():
    ours = {"a": 1, "zero_optimization": {"stage": 2, "overlap_comm": True}}
    raw = {"b": 3, "zero_optimization": {"overlap_comm": False}}
    zero = {"stage": 2, "overlap_comm": False}
    assert merged(ours, raw) == {"a": 1, "b": 3, "zero_optimization": zero}


def test_every_known_key_is_one_of_deepspeeds():
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    sources = [*Path(spec.origin).parent.rglob("*config*.py")]
    sources += Path(spec.origin).parent.rglob("constants.py")
    text = "".join(path.read_text() for path in sources)
    quoted = set(re.findall(r"""["'](\w+)["']""", text))
    assert {*KNOWN, *OURS} <= quoted
