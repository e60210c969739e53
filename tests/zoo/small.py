"""Every registered model made small enough to run, and what it reads."""

import torch

from orchestrator import models
from orchestrator.config.base import find
from orchestrator.models.base import StagedModel
from tests.zoo.cases import CASES, VARIANTS

NAMES = models.names()
SMALL = sorted(CASES)
"""Those that run on real tensors; the rest differ from them in size alone."""
IMAGES = [name for name in SMALL if not models.reads_tokens(name)]
ONE_INPUT = [name for name in NAMES if find("model", name).config.texts == 1]
"""All but those that read a text and the beginning of its answer."""
VOCABULARY = 50
_KNOWN = CASES | VARIANTS


def build(name: str, *, classes: int, in_channels: int = 3, size: int, **options) -> StagedModel:
    if models.reads_tokens(name):
        given = {"vocabulary": VOCABULARY, "length": size, **options}
        return models.create_sequence_model(name, num_classes=classes, **given)
    given = {"in_channels": in_channels, "image_size": size, **options}
    return models.create(name, num_classes=classes, **given)


def slim(name: str, *, channels: int = 1, **options) -> StagedModel:
    """The model of a case, or a variant without one, that tells five classes apart."""
    torch.manual_seed(0)
    case = _KNOWN[name]
    given = {**case.slim, **options}
    return build(name, classes=5, in_channels=channels, size=case.size, **given)


def images(name: str, channels: int = 1) -> torch.Tensor:
    """What that model reads: four images, or four texts of unequal length."""
    size, generator = _KNOWN[name].size, torch.Generator().manual_seed(1)
    if models.reads_tokens(name):
        tokens = torch.randint(1, VOCABULARY, (4, size), generator=generator)
        short = torch.tensor([0, 1, 0, size // 2])  # tokens that the texts lack at their end
        return tokens.masked_fill(torch.arange(size) >= size - short[:, None], 0)
    return torch.randn(4, channels, size, size, generator=generator)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def logits_of(outputs) -> torch.Tensor:
    """Everything a model puts out, auxiliary heads' logits beside its own."""
    return outputs if torch.is_tensor(outputs) else torch.cat(outputs, 1)


def main(outputs) -> torch.Tensor:
    """The model's own logits, without auxiliary heads'."""
    return outputs if torch.is_tensor(outputs) else outputs[0]


def settle(model: torch.nn.Module, *inputs: torch.Tensor) -> None:
    """Sets a model to evaluation, its batch norms with the statistics of these inputs.

    With those of a fresh network signals fade on the way, and every input gets the same answer.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(*inputs)
    for norm in norms:
        norm.eval()
