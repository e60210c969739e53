"""What travels from one rank of a pipeline to the next, in the shape that DeepSpeed handles well.

DeepSpeed's pipeline passes tuples on, but each of their floats must have a gradient and lie in
memory in the plain order, and the backward pass runs once for each of them, through what they share
again and again. So a parcel is always (payload, notes): all floats in one flat tensor, and as bytes
the rest: shapes, whole numbers and masks, and the random generators' states, so that the next rank
draws on where this one stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.models.stages import State

Parcel = tuple[Tensor, Tensor]
"""Payload, floats [values], and notes, uint8[bytes]."""

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
_WORD = 8
"""Bytes of an int64. Each part of the notes begins at a multiple, so that it can be viewed."""


class _Kind(NamedTuple):
    """How a tensor's values in memory are to be seen."""

    dtype: torch.dtype
    channels_last: bool
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Kind:
        flipped = tensor.ndim == 4 and not tensor.is_contiguous()
        flipped = flipped and tensor.is_contiguous(memory_format=torch.channels_last)
        return cls(tensor.dtype, flipped, tuple(tensor.shape))

    def words(self) -> list[int]:
        return [DTYPES.index(self.dtype), self.channels_last, len(self.shape), *self.shape]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def flat(self, tensor: Tensor) -> Tensor:
        """The values in the order of memory."""
        return (tensor.permute(0, 2, 3, 1) if self.channels_last else tensor).reshape(-1)

    def seen(self, flat: Tensor) -> Tensor:
        """The opposite of `flat`."""
        if not self.channels_last:
            return flat.view(self.shape)
        n, c, h, w = self.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def pack(state: State, *, draws: bool) -> Parcel:
    """Makes a parcel of what a stage put out.

    Args:
        state: one tensor, or a flat tuple of tensors on one device.
        draws: whether the generators' states go along.

    Raises:
        UserError: for anything else.
    """
    tensors = state if isinstance(state, tuple) else (state,)
    for one in tensors:
        if not isinstance(one, Tensor) or one.dtype not in DTYPES:
            what = one.dtype if isinstance(one, Tensor) else type(one).__name__
            raise UserError(
                "between the stages of a model there must be tensors of floats, whole numbers or "
                f"masks, alone or in a flat tuple, but one gave {what}; change its `stages`"
            )
    device = tensors[0].device
    kinds = [_Kind.of(one) for one in tensors]
    random = _generators(device) if draws else []
    header = [isinstance(state, tuple), len(random), *map(len, random), len(kinds)]
    words = [*header, *(word for kind in kinds for word in kind.words())]
    about = torch.tensor([len(words), *words], dtype=torch.int64).view(torch.uint8)
    local = torch.cat([about, *map(_padded, random)]).to(device)
    whole = [_padded(kind.flat(one).view(torch.uint8)) for one, kind in _whole(tensors, kinds)]
    return _payload(tensors, kinds), torch.cat([local, *whole]) if whole else local


def unpack(parcel: Parcel) -> State:
    """What was packed; the generators go on where the sender's stopped, if they came along."""
    payload, notes = parcel
    local = notes.cpu()
    about = local[: _WORD * (1 + int(local[:_WORD].view(torch.int64)))].view(torch.int64).tolist()
    words = iter(about[1:])
    is_tuple = next(words)
    lengths = [next(words) for _ in range(next(words))]
    kinds = []
    for _ in range(next(words)):
        dtype, channels_last = DTYPES[next(words)], bool(next(words))
        shape = tuple(next(words) for _ in range(next(words)))
        kinds.append(_Kind(dtype, channels_last, shape))
    place = _WORD * len(about)
    random = []
    for length in lengths:
        random.append(local[place : place + length])
        place += _rounded(length)
    _resume(random, payload.device)
    state, taken = [], 0
    alone = sum(kind.dtype.is_floating_point for kind in kinds) == 1
    for kind in kinds:
        if kind.dtype.is_floating_point:
            part = payload[taken : taken + kind.size]
            # A copy, because a stage may write to a tensor, and others share this memory.
            state.append(kind.seen(part if alone else part.clone().to(kind.dtype)))
            taken += kind.size
        else:
            length = kind.size * kind.dtype.itemsize
            state.append(kind.seen(notes[place : place + length].view(kind.dtype)))
            place += _rounded(length)
    return tuple(state) if is_tuple else state[0]


def _payload(tensors: Sequence[Tensor], kinds: Sequence[_Kind]) -> Tensor:
    """Every float, flat, in the widest of their dtypes; going there and back changes none."""
    floats = [
        kind.flat(one)
        for one, kind in zip(tensors, kinds, strict=True)
        if kind.dtype.is_floating_point
    ]
    if len(floats) == 1:
        return floats[0]
    # Even one that is sent for nothing must be there: DeepSpeed asks for its gradient.
    return torch.cat(floats) if floats else torch.zeros(1, device=tensors[0].device)


def _whole(tensors: Sequence[Tensor], kinds: Sequence[_Kind]) -> list[tuple[Tensor, _Kind]]:
    """The tensors that are not floats."""
    pairs = zip(tensors, kinds, strict=True)
    return [(one, kind) for one, kind in pairs if not kind.dtype.is_floating_point]


def _generators(device: torch.device) -> list[Tensor]:
    """The states of the CPU's generator and the device's, uint8."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _resume(states: Sequence[Tensor], device: torch.device) -> None:
    if states:
        torch.set_rng_state(states[0].clone())
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1].clone(), device)


def _rounded(size: int) -> int:
    return -(-size // _WORD) * _WORD


def _padded(raw: Tensor) -> Tensor:
    return torch.nn.functional.pad(raw, (0, _rounded(len(raw)) - len(raw)))
