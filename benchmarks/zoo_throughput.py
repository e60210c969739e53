"""Images per second of our networks against torchvision's and timm's, in training and evaluation.

Both sides get the same weights, images, precision and memory format, and take turns in one process:
a turn is one training step (forward, backward, SGD) or one evaluation of the batch, several of them
where one is short. ``fp32`` has contiguous images, as most who use torchvision have; ``bf16`` is
autocast, and channels-last for convolutional networks. In fp32 the two must give the same logits
before anything is timed. Run with ``python -m benchmarks.zoo_throughput [--device cuda --batch
256]``; prints JSON. Dropout and stochastic depth stay as published, the same on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import alternate, machine
from orchestrator import models
from tests.references import import_timm, import_torchvision

NETWORKS = (
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "vit_tiny_patch16",
    "vit_small_patch16",
)
CLASSES = 1000
TURN = 0.1
"""Seconds that a turn takes at least."""
ROUNDS = range(9, 400)
"""How often each side has its turn: few are no median, many more don't make it better."""


class Setting(NamedTuple):
    """What both sides have in common."""

    device: torch.device
    precision: str
    training: bool
    channels_last: bool

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to bf16, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def to_format(self, what: Any) -> Any:
        """The network or images on the device and in the memory format."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return what.to(self.device, memory_format=form)


def reference(name: str, size: int) -> nn.Module:
    """The same network of torchvision or timm, as a user of theirs makes it, but untrained."""
    library, _, theirs = models.published(name).reference.partition(":")
    if library == "timm":
        return import_timm().create_model(theirs, img_size=size)
    return import_torchvision().models.get_model(theirs, weights=None)


def pair(name: str, size: int) -> dict[str, nn.Module]:
    """Our network and theirs, at the same weights.

    Raises:
        SystemExit: if they don't give the same logits.
    """
    torch.manual_seed(0)
    theirs = reference(name, size).eval()
    ours = models.create(name, num_classes=CLASSES, in_channels=3, image_size=size).eval()
    renamed = {ours.key_map(key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value for key, value in renamed.items() if key is not None})
    x_NCHW = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        logits, expected = ours(x_NCHW), theirs(x_NCHW)
    apart = ((logits - expected).abs().max() / expected.abs().max()).item()
    if not apart <= 1e-4:
        raise SystemExit(
            f"{name}: the logits differ by {apart:.1e} of the largest; nothing to time"
        )
    return {"ours": ours, "reference": theirs}


def prepare(
    model: nn.Module, x_NCHW: torch.Tensor, label_N: torch.Tensor, setting: Setting
) -> Callable[[], None]:
    """One training step, or one evaluation, of a network."""
    model = setting.to_format(model.train(setting.training))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        with setting.autocast():
            loss = F.cross_entropy(model(x_NCHW), label_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def evaluate() -> None:
        with setting.autocast():
            model(x_NCHW)

    return train if setting.training else evaluate


def timed(work: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds that some steps take, until the device has done them."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(
    networks: dict[str, nn.Module], batch: int, size: int, setting: Setting, seconds: float
) -> dict[str, Any]:
    """Takes turns for about `seconds`; adds what the seconds mean in images per second."""
    generator = torch.Generator().manual_seed(0)
    x_NCHW = setting.to_format(torch.randn(batch, 3, size, size, generator=generator))
    label_N = torch.randint(0, CLASSES, (batch,), generator=generator).to(setting.device)
    steps = {side: prepare(net, x_NCHW, label_N, setting) for side, net in networks.items()}
    for step in steps.values():
        timed(step, 2, setting.device)
    once = sum(timed(step, 1, setting.device) for step in steps.values())
    times = max(1, math.ceil(TURN * len(steps) / once))
    rounds = min(max(round(seconds / (once * times)), ROUNDS.start), ROUNDS.stop)

    def turn(step: Callable[[], None]) -> Callable[[], float]:
        return lambda: timed(step, times, setting.device)

    found = alternate({side: turn(step) for side, step in steps.items()}, rounds)
    found["images per second"] = {
        side: float(f"{batch * times / values['median']:.4g}")
        for side, values in found["seconds"].items()
    }
    return {"steps a turn": times, **found}


def settings(name: str, device: torch.device) -> Iterator[tuple[str, Setting]]:
    """What is measured of a network."""
    convolutional = not name.startswith("vit")
    for precision in ("fp32", "bf16"):
        for training in (True, False):
            channels_last = precision == "bf16" and convolutional
            words = [name, precision, *(["channels last"] if channels_last else [])]
            label = ", ".join([*words, "train" if training else "eval"])
            yield label, Setting(device, precision, training, channels_last)


def main() -> None:
    """Measures every network in every setting and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--seconds", type=float, default=20, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {}
    for name in given.networks:
        networks = pair(name, given.size)
        for label, setting in settings(name, given.device):
            found = measure(networks, given.batch, given.size, setting, given.seconds)
            ratio = found["times faster is ours"]["than reference"]
            print(f"{label}: {ratio['median']} in {ratio['median in']}", file=sys.stderr)
            results[label] = found
    document = {
        "benchmark": "zoo_throughput",
        "machine": machine(),
        "device": str(given.device),
        "batch": given.batch,
        "pixels": given.size,
        "results": results,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
