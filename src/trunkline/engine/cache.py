"""A bounded cache, the least recently used first to go. Knows keys and sizes in bytes, nothing of what it keeps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=_Sized)


class Cache(Generic[Key, Value]):
    """Keeps values of at most `limit` bytes in all. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._turn = threading.Lock()
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, which thereby is the most recently used one; None where there is none."""
        with self._turn:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; one larger than the whole cache is not kept."""
        if value.nbytes > self.limit:
            return
        with self._turn:
            old = self._kept.pop(key, None)
            self.used += value.nbytes - (0 if old is None else old.nbytes)
            self._kept[key] = value
            while self.used > self.limit:
                _, gone = self._kept.popitem(last=False)
                self.used -= gone.nbytes

    def clear(self) -> None:
        """Keep nothing of what it had."""
        with self._turn:
            self._kept.clear()
            self.used = 0
