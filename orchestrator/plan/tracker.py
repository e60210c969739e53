"""How many bytes of tensors are alive, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation makes, from then until it is freed.

    Works on real tensors and on fake ones, which have sizes but no memory, on any device. Memory
    that a kernel takes and gives back within one operation is not seen.

    Args:
        known: tensors made before that count too, such as parameters.

    Attributes:
        live: bytes alive now.
        peak: the most bytes that were alive since `restart_peak`.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._follow(tensor)
        self.restart_peak()

    def restart_peak(self) -> int:
        """Forgets the peak; it begins again at what is alive now.

        Returns:
            The peak until now.
        """
        before, self.peak = self.peak, self.live
        return before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation and follows what it gives."""
        result = func(*args, **kwargs or {})
        for one in tree_iter(result):
            if isinstance(one, Tensor):
                self._follow(one)
        return result

    def _follow(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return  # a shape without memory, which a fake tensor is not: it names its device
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._freed, key).atexit = False
        # An operation may have resized a storage that was there.
        self.live += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
