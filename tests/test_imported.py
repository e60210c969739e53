"""What is said of a network of the user's own before it trains."""

from __future__ import annotations

import pytest

from orchestrator.config.base import build
from orchestrator.config.load import config_from_mapping
from orchestrator.errors import ConfigError
from orchestrator.host import SingleWorker
from orchestrator.imported import check_outputs
from orchestrator.parts import build_loader

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))

class NeedsNumbers(Net):
    def forward(self, x):
        return super().forward(x / x.max().item())
"""


def check(net: str, classes: object) -> None:
    target = {"type": "import", "target": f"counted_nets:{net}", "args": {"classes": classes}}
    file = {"name": "own", "data": {"source": {"type": "digits"}}, "model": target}
    config = config_from_mapping(file)
    loader = build_loader(config, SingleWorker())
    check_outputs(config, build("task", config.task), loader.info)


def test_outputs_are_counted_where_that_takes_no_numbers(tmp_path, monkeypatch):
    (tmp_path / "counted_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    for classes in (3, 11):
        with pytest.raises(
            ConfigError, match=rf"gives {classes} outputs, .* needs 10; .*\$outputs"
        ):
            check("Net", classes)
    check("Net", "$outputs")
    check("NeedsNumbers", 3)
