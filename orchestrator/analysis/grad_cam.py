"""Where in an image a classifier sees a class: Grad-CAM.

Selvaraju et al., 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", equations 1 and 2.

Axes: N images, C channels (or features of a token), H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from orchestrator.errors import UserError
from orchestrator.models.base import StagedModel

_EXTRA_TOKENS = 3
"""Tokens that stand for no place, such as a class token, lie before the others; fewer than this."""


class NoMapError(UserError):
    """A network without a map of places, so that nothing can be said of where it looks."""


def grad_cam(network: nn.Module, x_NCHW: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM of the last feature map that the class depends on.

    Of a network of stages (`StagedModel`) it is the last stage's output that is a map; of any
    other the last module's. Tokens of patches are a map too. Where a class token alone reaches the
    head, the map before the last block is the last one that matters.

    Args:
        network: gives logits [N, K]; in evaluation mode, so that images don't change each other.
        x_NCHW: images as the network takes them, normalised.
        labels: int64[N], a class for each image.

    Returns:
        float32[N, H, W] in 0..1, bilinearly enlarged to the images' size; the largest value of an
        image is 1, or all are 0 where nothing speaks for the class.

    Raises:
        NoMapError: if no output on the way is a map of more than one place, or the class depends
            on none of them.
    """
    size = (x_NCHW.shape[2], x_NCHW.shape[3])
    with torch.enable_grad():
        logits_NK, outputs = _run(network, x_NCHW.detach().requires_grad_(), size)
        # Images don't depend on each other, so the sum's gradient is each one's own.
        score = logits_NK.gather(1, labels[:, None]).sum()
        for output in reversed(outputs):
            gradient = _gradient(score, output)
            if gradient is None:
                continue
            gradient_NCHW = _as_map(gradient, size)
            activation_NCHW = _as_map(output.detach(), size)
            if gradient_NCHW is not None and activation_NCHW is not None and gradient_NCHW.any():
                return _enlarged(_combined(activation_NCHW, gradient_NCHW), size)
    raise NoMapError(
        f"{type(network).__name__} has no map of places between image and answer that its answer "
        "depends on, so Grad-CAM can't say where it looks"
    )


def _gradient(score: Tensor, output: Tensor) -> Tensor | None:
    """∂score/∂output; None if the score does not depend on it."""
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        score, output, retain_graph=True, allow_unused=True
    )
    return found[0]


def _combined(activation_NCHW: Tensor, gradient_NCHW: Tensor) -> Tensor:
    """Equations 1 and 2: the mean gradient weighs each channel, and what is negative is dropped."""
    weights_NC11 = gradient_NCHW.float().mean((2, 3), keepdim=True)
    return (weights_NC11 * activation_NCHW.float()).sum(1).relu()


def _enlarged(map_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    large = nn.functional.interpolate(map_NHW[:, None], size, mode="bilinear", align_corners=False)
    large_NHW = large[:, 0].detach()
    top_N11 = large_NHW.amax((1, 2), keepdim=True)
    return torch.where(top_N11 > 0, large_NHW / top_N11, torch.zeros_like(large_NHW))


def _run(network: nn.Module, x_NCHW: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the maps on the way to them."""
    maps: list[Tensor] = []

    def noted(output: object) -> object:
        # The network goes on with a copy, so that no operation in place changes what is noted.
        if isinstance(output, Tensor):
            if _as_map(output, size) is None:
                return output
            maps.append(output)
            return output.clone()
        return tuple(map(noted, output)) if isinstance(output, tuple) else output

    if isinstance(network, StagedModel):
        state: object = x_NCHW
        for stage in network.stages():
            state = noted(stage.fn(state))
    else:
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: noted(output))
            for module in network.modules()
            if module is not network
        ]
        try:
            state = network(x_NCHW)
        finally:
            for hook in hooks:
                hook.remove()
    logits = state[0] if isinstance(state, tuple) else state
    assert isinstance(logits, Tensor)
    return logits, maps


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor | None:
    """[N, C, h, w] of an output that is a map of more than one place, else None."""
    if not x.is_floating_point():
        return None
    if x.ndim == 4:
        if _alike(x.shape[1:3], size) and not _alike(x.shape[2:4], size):
            x = x.permute(0, 3, 1, 2)  # NHWC
        return x if x.shape[2] * x.shape[3] > 1 else None
    if x.ndim == 3:
        for extra in range(_EXTRA_TOKENS):
            for grid in _grids(x.shape[1] - extra, size):
                return torch.unflatten(x[:, extra:].transpose(1, 2), 2, grid)
    return None


def _grids(tokens: int, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The (h, w) with h·w = tokens > 1 and the image's proportions."""
    height, width = size
    rows = round(math.sqrt(max(tokens, 0) * height / width))
    if tokens > 1 and rows and tokens % rows == 0 and _alike((rows, tokens // rows), size):
        yield rows, tokens // rows


def _alike(grid: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a grid has the image's proportions, but for what rounding a side changes."""
    (rows, columns), (height, width) = grid, size
    if rows > height or columns > width:
        return False
    return abs(rows * width - columns * height) <= max(height, width)
