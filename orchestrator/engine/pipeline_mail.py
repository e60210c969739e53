"""How parcels and their gradients travel between the ranks of a pipeline.

DeepSpeed sends a parcel as three messages (sizes, floats, the rest), each of which waits until the
other side asks for it, and copies what has come. Here it is one message: as long as the one before
it, which both sides know, and a second one for what is longer. Where messages travel on their own,
between CPUs, it is asked for in advance and sent without waiting, so that ranks compute meanwhile.
"""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.engine.pipeline_parcel import DTYPES, Parcel

FIRST = 8192
"""Bytes of the first message, more than the notes of most parcels take."""
_WORDS, _ALIGN = 3, 64
_HEAD = 8 * _WORDS
"""Bytes of three int64: the payload's numbers and dtype, and the notes' bytes."""


class Mail:
    """A rank's messages to the ranks before and after it.

    Args:
        before: the earlier rank's number in the whole group; None for the first.
        after: the later rank's; None for the last.
        device: of this rank.
    """

    def __init__(self, before: int | None, after: int | None, device: torch.device) -> None:
        self._before, self._after, self._device = before, after, device
        # NCCL does a pair's messages in the order in which each side asks for them, so one that is
        # asked for too early would stop those that have to come first.
        self._early = device.type == "cpu"
        self._sent = self._received = FIRST
        self._parcels = 0
        self._parcel: _Arriving | None = None
        self._gradient: _Arriving | None = None
        self._gradients: deque[Tensor] = deque()
        self._leaving: dict[int, tuple[Any, Tensor]] = {}

    def begin(self, parcels: int) -> None:
        """Says how many parcels pass until this is called again."""
        self._parcels = parcels if self._before is not None else 0
        self._gradients.clear()
        self._ask_for_parcel()

    def send(self, parcel: Parcel, *, gradient: bool) -> None:
        """Sends a parcel to the rank after this one.

        Args:
            gradient: whether one of the payload will come back.
        """
        assert self._after is not None
        whole = _joined(parcel)
        size, self._sent = self._sent, len(whole)
        start = whole[:size]
        self._put(start if len(start) == size else _padded(start, size), self._after)
        if len(whole) > size:
            self._put(whole[size:], self._after)
        if gradient:
            self._gradients.append(parcel[0])
            self._ask_for_gradient()

    def receive(self) -> Parcel:
        """The next parcel of the rank before this one; its payload asks for a gradient."""
        assert self._before is not None
        arriving = self._parcel or self._asked(self._received, torch.uint8, self._before)
        self._parcel, self._parcels = None, self._parcels - 1
        whole = arriving.wait()
        numbers, dtype, notes = whole[:_HEAD].cpu().view(torch.int64).tolist()
        start = _rounded(_HEAD + notes)
        total = start + numbers * DTYPES[dtype].itemsize
        if total > len(whole):
            rest = self._asked(total - len(whole), torch.uint8, self._before).wait()
            whole = torch.cat([whole, rest])
        self._received = total
        self._ask_for_parcel()
        payload = whole[start:total].view(DTYPES[dtype])
        return payload.requires_grad_(), whole[_HEAD : _HEAD + notes]

    def send_gradient(self, gradient: Tensor) -> None:
        """Sends the gradient of a payload back to where it came from."""
        assert self._before is not None
        self._put(gradient, self._before)

    def receive_gradient(self) -> Tensor:
        """The gradient of the payload that was sent first of those which still wait for theirs."""
        arriving = self._gradient or self._asked_like(self._gradients[0])
        self._gradient = None
        self._gradients.popleft()
        gradient = arriving.wait()
        self._ask_for_gradient()
        return gradient

    def _ask_for_parcel(self) -> None:
        if self._early and self._parcels and self._parcel is None:
            assert self._before is not None
            self._parcel = self._asked(self._received, torch.uint8, self._before)

    def _ask_for_gradient(self) -> None:
        if self._early and self._gradients and self._gradient is None:
            self._gradient = self._asked_like(self._gradients[0])

    def _asked_like(self, payload: Tensor) -> _Arriving:
        assert self._after is not None
        return self._asked(payload.numel(), payload.dtype, self._after)

    def _asked(self, size: int, dtype: torch.dtype, source: int) -> _Arriving:
        return _Arriving(torch.empty(size, dtype=dtype, device=self._device), source)

    def _put(self, tensor: Tensor, target: int) -> None:
        tensor = tensor.detach().contiguous()
        if not self._early:
            dist.send(tensor, target)
            return
        if target in self._leaving:
            self._leaving[target][0].wait()
        # The tensor is kept too: its memory is read until the other side has it.
        self._leaving[target] = dist.isend(tensor, target), tensor


class _Arriving:
    """A message that was asked for."""

    def __init__(self, room: Tensor, source: int) -> None:
        self._room = room
        self._work = dist.irecv(room, source)

    def wait(self) -> Tensor:
        assert self._work is not None
        self._work.wait()
        return self._room


def carry(engine: Any, mail: Mail) -> None:
    """Has a DeepSpeed pipeline engine send and receive through `mail`."""
    schedule = importlib.import_module("deepspeed.runtime.pipe.schedule")

    def send_parcel(engine: Any, buffer_id: int) -> None:
        mail.send(engine.pipe_buffers["outputs"][buffer_id], gradient=torch.is_grad_enabled())

    def receive_parcel(engine: Any, buffer_id: int) -> None:
        engine.pipe_buffers["inputs"][buffer_id] = mail.receive()

    def send_gradient(engine: Any, buffer_id: int) -> None:
        payload, _ = engine.pipe_buffers["inputs"][buffer_id]
        engine.pipe_buffers["inputs"][buffer_id] = None
        mail.send_gradient(payload.grad)

    def receive_gradient(engine: Any, buffer_id: int) -> None:
        engine.grad_layer = [mail.receive_gradient()]

    engine._INSTRUCTION_MAP = engine._INSTRUCTION_MAP | {
        schedule.SendActivation: send_parcel,
        schedule.RecvActivation: receive_parcel,
        schedule.SendGrad: send_gradient,
        schedule.RecvGrad: receive_gradient,
    }


def _joined(parcel: Parcel) -> Tensor:
    """A parcel's bytes: sizes, notes, and the payload where its numbers can be read in place."""
    payload, notes = parcel[0].detach().contiguous(), parcel[1]
    words = [payload.numel(), DTYPES.index(payload.dtype), len(notes)]
    head = torch.tensor(words, dtype=torch.int64).view(torch.uint8).to(payload.device)
    used = _HEAD + len(notes)
    gap = notes.new_zeros(_rounded(used) - used)
    return torch.cat([head, notes, gap, payload.view(torch.uint8)])


def _padded(message: Tensor, size: int) -> Tensor:
    return torch.cat([message, message.new_zeros(size - len(message))])


def _rounded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
