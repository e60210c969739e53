"""Models by name. A family's module is imported when one of its names is first asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .names import nearest

if TYPE_CHECKING:
    from torch import nn

FAMILIES: dict[str, tuple[str, ...]] = {
    "mlp": ("mlp",),
    "lenet": ("lenet5",),
    "alexnet": ("alexnet",),
    "vgg": tuple(f"vgg{n}{norm}" for n in (11, 13, 16, 19) for norm in ("", "_bn")),
    "googlenet": ("googlenet",),
    "inception_v2": ("inception_v2",),
    "inception_v3": ("inception_v3",),
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "resnext": ("resnext50_32x4d", "resnext101_32x8d"),
    "seresnet": ("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152"),
    "wide_resnet": ("wide_resnet50_2", "wrn_28_10"),
    "resnet9": ("resnet9",),
    "shufflenet_v2": tuple(f"shufflenet_v2_x{n}" for n in ("0_5", "1_0", "1_5", "2_0")),
    "mobilenet_v1": ("mobilenet_v1",),
    "mobilenet_v2": ("mobilenet_v2",),
    "mobilenet_v3": ("mobilenet_v3_small", "mobilenet_v3_large"),
    "efficientnet": (
        *(f"efficientnet_b{n}" for n in range(8)),
        "efficientnet",
        "efficientnet_small",
    ),
    "densenet": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "squeezenet": ("squeezenet1_0", "squeezenet1_1"),
    "inception_v4": ("inception_v4",),
    "inception_resnet_v2": ("inception_resnet_v2",),
    "convnet": ("convnet",),
    "vit": tuple(f"vit_{size}_patch16" for size in ("tiny", "small", "base", "large")),
    "deit": tuple(
        f"deit_{size}_{kind}patch16"
        for kind in ("", "distilled_")
        for size in ("tiny", "small", "base")
    ),
    "swin": ("swin_tiny", "swin_small", "swin_base"),
    "pvt_v2": ("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2"),
    "cvt": ("cvt_13", "cvt_21"),
    "recurrent": ("rnn", "lstm", "gru", "bigru_attention"),
    "tcn": ("tcn",),
    "bert": ("transformer_encoder", "bert_base", "bert_large"),
    "gpt2": ("transformer_decoder", "gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"),
    "encoder_decoder": ("transformer",),
}
"""Which module of this package registers which names."""


Factory = Callable[..., "nn.Module"]
"""Called with num_classes, in_channels and image_size; further keywords are the model's options."""


@dataclass(frozen=True)
class Published:
    """What is known of a model from outside, so that ours can be compared with it.

    Attributes:
        paper: authors and year, as in ``He et al., 2016``.
        parameters: of the reference checkpoint, with `classes` classes and, of images, three
            channels.
        reference: whose state-dict names and shapes ours are, as in ``torchvision:resnet50`` or
            ``timm:deit_tiny_patch16_224``, or whose tensors the model turns into its own, as in
            ``transformers:GPT2LMHeadModel``; empty where none has the model.
        figure: the parameters that the paper itself states, as in ``25.6M``; empty where none.
        resolution: side, in pixels, of the images that the published weights were trained on; of
            texts, the most tokens of one.
        classes: that the parameters are counted for.
        vocabulary: of texts, how many tokens there are; with as many classes, each token has an
            answer.
    """

    paper: str
    parameters: int
    reference: str = ""
    figure: str = ""
    resolution: int = 224
    classes: int = 1000
    vocabulary: int | None = None

    @property
    def per_token(self) -> bool:
        """Whether the classes are the tokens, as a language model's are."""
        return self.classes == self.vocabulary


_FACTORIES: dict[str, Factory] = {}
_PUBLISHED: dict[str, Published] = {}
_DATA_GIVEN = ("num_classes", "in_channels", "image_size", "vocabulary", "length", "per_token")


def register(name: str, factory: Factory, published: Published | None = None) -> None:
    """Adds a model under a name, with what is published of it.

    Raises:
        ValueError: if the name is taken by another factory.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise ValueError(f"model {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory
    if published is not None:
        _PUBLISHED[name] = published


def names() -> list[str]:
    """Every name that `create` takes, sorted. Imports no family."""
    return sorted({name for family in FAMILIES.values() for name in family} | set(_FACTORIES))


def options_of(name: str) -> dict[str, Any]:
    """A model's options with their defaults.

    Raises:
        ValueError: for an unknown name.
    """
    parameters = inspect.signature(_factory(name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in _DATA_GIVEN}


def published(name: str) -> Published | None:
    """What is published of a model; None for a model of our own.

    Raises:
        ValueError: for an unknown name.
    """
    _factory(name)
    return _PUBLISHED.get(name)


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    **options: Any,
) -> nn.Module:
    """Builds a model, freshly initialised from torch's global random state, in training mode.

    Args:
        name: one of `names`.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        options: the family's own, such as ``width``; `options_of` lists them.

    Raises:
        ValueError: for an unknown name, option, or value; the message says what would be right.
    """
    if reads_tokens(name):
        raise ValueError(
            f"{name} reads tokens, not images; build it by create_sequence_model, with the "
            "vocabulary's size and the texts' length"
        )
    _check_options(name, options)
    return _factory(name)(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )


def create_sequence_model(
    name: str,
    *,
    num_classes: int,
    vocabulary: int,
    length: int | tuple[int, ...],
    per_token: bool = False,
    **options: Any,
) -> nn.Module:
    """Builds a model of texts, as `create` builds one of images.

    Args:
        name: one of `names` that `reads_tokens`.
        num_classes: length of the logits.
        vocabulary: how many tokens there are; 0 is padding.
        length: most tokens of a sequence; (source, target) where a text answers a text.
        per_token: logits for each token, not for the whole sequence.
        options: the family's own; `options_of` lists them.

    Raises:
        ValueError: as `create`.
    """
    if not reads_tokens(name):
        raise ValueError(f"{name} reads images, not tokens; build it by create")
    _check_options(name, options)
    return _factory(name)(
        num_classes=num_classes,
        vocabulary=vocabulary,
        length=length,
        per_token=per_token,
        **options,
    )


def reads_tokens(name: str) -> bool:
    """Whether a model reads sequences of tokens, not images: its factory takes `vocabulary`.

    Raises:
        ValueError: for an unknown name.
    """
    return "vocabulary" in inspect.signature(_factory(name)).parameters


def _check_options(name: str, options: Iterable[str]) -> None:
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {nearest(option, list(known))}")


def _factory(name: str) -> Factory:
    if name not in _FACTORIES:
        module = next((m for m, known in FAMILIES.items() if name in known), None)
        if module is None:
            raise ValueError(f"unknown model {name!r}; {nearest(name, names())}")
        importlib.import_module(f".{module}", __package__)
    return _FACTORIES[name]
