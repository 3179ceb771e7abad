"""Engines from modules: the chosen backend over one trunk, and what it has built of branches so far.

A loader outlives its engines: the next one over the same trunk takes over every branch that an engine in use has, and
the states of known texts, so that a release is swapped by building what is new. Knows modules and content hashes;
nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

from trunkline.engine.asked import StateCache
from trunkline.engine.cache import Cache
from trunkline.engine.choose import Choice
from trunkline.engine.planned import CACHE_BYTES, PlannedEngine
from trunkline.engine.ranges import Ranges
from trunkline.model.branch import Branch
from trunkline.model.trunk import Trunk

Source = tuple[str, Callable[[], Branch]]
"""The content hash of a branch, and what loads it."""
RangesSource = tuple[str, Callable[[], Ranges]]
"""The content hash of a branch's int8 ranges, and what loads them."""


class Loader:
    """Builds engines of one choice over one trunk, with the int8 `ranges` of its layers where int8 was chosen.

    States of known texts take `cache_bytes` at most.
    """

    def __init__(
        self,
        trunk: Trunk,
        choice: Choice,
        ranges: Ranges = MappingProxyType({}),
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.trunk = trunk
        self.choice = choice
        # Content hash -> the branch as the backend has it, as long as any engine holds it.
        self._built: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._builder = _builder(trunk, choice, ranges)
        self._cache: StateCache = Cache(cache_bytes)

    def engine(
        self, branches: Mapping[str, Source], ranges: Mapping[str, RangesSource] = MappingProxyType({})
    ) -> PlannedEngine:
        """An engine of these branches, by task, with the int8 `ranges` of those that have any."""
        parts = self._take(branches, ranges, self._builder.part)
        return PlannedEngine(self.trunk.encoder.reader, self._builder.backend(parts), cache=self._cache)

    def _take(
        self, branches: Mapping[str, Source], ranges: Mapping[str, RangesSource], build: Callable[..., Any]
    ) -> dict[str, Any]:
        taken = {}
        for task, (sha256, load) in sorted(branches.items()):
            key, more = (sha256, ()) if task not in ranges else (f"{sha256} {ranges[task][0]}", ranges[task][1:])
            taken[task] = self._built.get(key)
            if taken[task] is None:
                taken[task] = self._built[key] = build(load(), *(read() for read in more))
        return taken


def _builder(trunk: Trunk, choice: Choice, ranges: Ranges) -> Any:
    """What makes the parts of an engine."""
    if choice.engine == "openvino":
        from trunkline.engine.openvino import Builder

        return Builder(trunk, dtype=choice.floats, ranges=ranges)
    from trunkline.engine.torch import TorchBuilder

    return TorchBuilder(trunk, device=choice.device, dtype=choice.dtype)
