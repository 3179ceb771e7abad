"""A bounded cache, the least recently used first to go. Knows keys and sizes, nothing of what it keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Keeps at most `limit` bytes of values, as `size` counts them. Not safe for threads."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit = limit
        self.used = 0
        self._size = size
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, which thereby is the most recently used one; None where there is none."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; one larger than the whole cache is not kept."""
        size = self._size(value)
        if size > self.limit:
            return
        old = self._kept.pop(key, None)
        self.used += size - (0 if old is None else self._size(old))
        self._kept[key] = value
        while self.used > self.limit:
            _, gone = self._kept.popitem(last=False)
            self.used -= self._size(gone)
