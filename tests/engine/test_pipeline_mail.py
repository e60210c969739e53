"""Parcels of any size reach the next rank whole and in order, and their gradients come back."""

from __future__ import annotations

import torch

from orchestrator.engine.pipeline_mail import FIRST, Mail
from tests.groups import in_group

SIZES = ((3, 10), (5000, 24), (5000, 24), (7, 2 * FIRST), (1, 0), (40_000, 5056))
"""(Floats, bytes of notes): below and above the first message, growing, shrinking and alike."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def parcel(number: int):
    floats, notes = SIZES[number % len(SIZES)]
    random = torch.Generator().manual_seed(number)
    payload = torch.randn(floats, generator=random).to(DTYPES[number % len(DTYPES)])
    return payload, torch.randint(256, (notes,), generator=random, dtype=torch.uint8)


def pass_on(worker):
    """Two rounds through three ranks: up to two parcels under way, then without gradients.

    Returns whether all that came was what was sent, in the dtype in which it was.
    """
    rank, count, right = worker.rank, len(SIZES), []
    before = rank - 1 if rank else None
    after = rank + 1 if rank < 2 else None
    mail = Mail(before, after, worker.device)
    for first, gradient in ((0, True), (100, False), (200, True)):
        mail.begin(count)
        waiting = []

        def come_back(waiting=waiting):
            number, payload = waiting.pop(0)
            found = mail.receive_gradient()
            right.append(torch.equal(found, parcel(number)[0] * 2))
            if payload is not None:
                mail.send_gradient(found)

        for number in range(first, first + count):
            whole, payload = parcel(number), None
            if before is not None:
                found = mail.receive()
                right.append(all(map(torch.equal, found, whole)))
                right.append(found[0].dtype == whole[0].dtype and found[0].requires_grad)
                payload = found[0]
            if after is not None:
                mail.send(whole, gradient=gradient)
                waiting.append((number, payload))
            elif gradient:
                (payload * payload).sum().backward()
                mail.send_gradient(payload.grad)
            if gradient and len(waiting) == 2:
                come_back()
        while gradient and waiting:
            come_back()
    worker.barrier()
    return right


def test_what_arrives_is_what_was_sent():
    ranks = in_group(3, pass_on)
    assert [len(right) for right in ranks] == [12, 12 + 36, 36]
    assert all(all(right) for right in ranks)
