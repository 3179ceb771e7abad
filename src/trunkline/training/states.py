"""Trunk states at a fork: computed once per distinct text, kept on disk, shared by every candidate that reads them.

Knows texts, token rows and the trunk; nothing of labels or branches. A state file is a packed float16 (or, where that
would overflow, float32) array without padding, memory-mapped: (tokens of all texts, H), with offsets. The cache is
bounded: the least recently used files leave first; a set too large for the bound is computed afresh for each batch, and
says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trunkline.atomic import publish_folder, remove_folder, scratch_folder
from trunkline.model.tokens import TokenRow, collate
from trunkline.model.trunk import Trunk
from trunkline.training.loop import BatchRows, by_length

TOKENS_PER_PASS = 8192
GRANULE = 8
"""Training batches are padded to a multiple of this many tokens: with few distinct shapes, memory does not fragment."""
_FORMAT = 1
_HEADERS = 512  # bytes of a state folder's two files besides their numbers, and some


class States(Protocol):
    """States of the texts of one slot at one fork."""

    def batch(self, rows: BatchRows) -> tuple[Tensor, Tensor]:
        """(states (B, T, H) float32, mask (B, T)) of these rows, right-padded."""
        ...


@dataclass(frozen=True)
class SlotTexts:
    """The token rows of one slot ("text", "pair" or "joint") for a list of inputs, equal ones kept once."""

    rows: list[TokenRow]  # distinct
    index: np.ndarray  # input -> position in `rows`

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> SlotTexts:
        positions: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        distinct: list[TokenRow] = []
        index = []
        for row in rows:
            key = (tuple(row.ids), tuple(row.types))
            if key not in positions:
                positions[key] = len(distinct)
                distinct.append(row)
            index.append(positions[key])
        return cls(distinct, np.asarray(index, dtype=np.int64))

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    def digest(self) -> str:
        """Identifies the distinct token rows, in order."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(np.asarray([len(row.ids), *row.ids, *row.types], dtype=np.int32).tobytes())
        return sha.hexdigest()


class CachedStates:
    """States read from a memory-mapped file."""

    def __init__(self, folder: Path, index: np.ndarray) -> None:
        self._flat = np.load(folder / "states.npy", mmap_mode="r")  # (tokens, H)
        self._offsets = np.load(folder / "offsets.npy")
        self._index = index

    def batch(self, rows: BatchRows) -> tuple[Tensor, Tensor]:
        texts = self._index[np.asarray(rows)]
        starts, ends = self._offsets[texts], self._offsets[texts + 1]
        longest = -(-int((ends - starts).max()) // GRANULE) * GRANULE
        states = np.zeros((len(texts), longest, self._flat.shape[1]), dtype=np.float32)
        mask = np.zeros((len(texts), longest), dtype=np.int64)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            states[row, : end - start] = self._flat[start:end]
            mask[row, : end - start] = 1
        return torch.from_numpy(states), torch.from_numpy(mask)


class LiveStates:
    """States computed for each batch, for sets that the bound of the cache does not admit."""

    def __init__(self, trunk: Trunk, texts: SlotTexts, fork: int) -> None:
        self._trunk, self._texts, self._fork = trunk, texts, fork

    def batch(self, rows: BatchRows) -> tuple[Tensor, Tensor]:
        found, mask = self.at([self._fork], rows)
        return found[self._fork], mask

    def at(self, forks: Iterable[int], rows: BatchRows) -> tuple[dict[int, Tensor], Tensor]:
        """As `batch`, at each of these forks, from one pass of the trunk."""
        texts = [self._texts.rows[i] for i in self._texts.index[np.asarray(rows)]]
        batch = collate(texts, self._trunk.encoder.reader.pad_id, multiple=GRANULE)
        device = next(self._trunk.parameters()).device
        found = self._trunk.states(batch.to(device), forks)
        return {fork: states.float() for fork, states in found.items()}, batch.mask


def at_forks(found: Mapping[int, States], rows: BatchRows) -> tuple[dict[int, Tensor], Tensor]:
    """({fork: states (B, T, H) float32}, mask (B, T)) of these rows of a slot, from what the cache gave for its forks;
    those that it did not admit are computed in one pass, of the trunk that goes deepest.
    """
    live = {fork: states for fork, states in found.items() if isinstance(states, LiveStates)}
    batches: dict[int, Tensor] = {}
    if live:
        batches, mask = live[max(live)].at(live, rows)
    for fork, states in found.items():
        if fork not in live:
            batches[fork], mask = states.batch(rows)
    return batches, mask


class StateCache:
    """The state files of a project, `max_bytes` at most in all."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def states(
        self,
        trunk: Trunk,
        texts: SlotTexts,
        forks: Iterable[int],
        *,
        precision: torch.dtype = torch.float32,
        say: Callable[[str], None] = lambda _: None,
    ) -> dict[int, States]:
        """States at each fork; all that are missing are computed in one pass of the trunk and published atomically."""
        digest = texts.digest()
        folders = {fork: self.folder / self._name(trunk, digest, fork, precision) for fork in sorted(set(forks))}
        live, size = self._fill(trunk, texts, folders, precision)
        if live:
            say(
                f"trunk states at fork {', '.join(map(str, live))} need {size / 1e9:.1f} GB each and are "
                f"computed for every batch instead (store.max_states_gb = {self.max_bytes / 1e9:g})"
            )
        found: dict[int, States] = {}
        for fork, folder in folders.items():
            if fork in live:
                found[fork] = LiveStates(trunk, texts, fork)
            else:
                os.utime(folder, ns=(time.time_ns(),) * 2)  # most recently used; the kernel's own clock is coarse
                found[fork] = CachedStates(folder, texts.index)
        return found

    @staticmethod
    def _name(trunk: Trunk, digest: str, fork: int, precision: torch.dtype) -> str:
        key = json.dumps([_FORMAT, trunk.fingerprint, digest, fork, str(precision)])
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def _fill(
        self, trunk: Trunk, texts: SlotTexts, folders: dict[int, Path], precision: torch.dtype
    ) -> tuple[list[int], int]:
        """Compute what is missing, as far as there is room: (forks that are not cached, bytes of each)."""
        missing = [fork for fork, folder in folders.items() if not folder.exists()]
        kept = sum(_size(folder) for fork, folder in folders.items() if fork not in missing)
        for dtype in (np.dtype(np.float16), np.dtype(np.float32)):
            size = texts.tokens * trunk.width * dtype.itemsize + 8 * len(texts.rows) + _HEADERS
            room = max(0, (self.max_bytes - kept) // size)
            wanted = {fork: folders[fork] for fork in missing[:room]}
            if wanted:
                self._make_room(size * len(wanted), keep=set(folders.values()))
            if not wanted or self._compute(trunk, texts, wanted, precision, dtype):
                break
        return missing[room:], size

    def _make_room(self, size: int, keep: set[Path]) -> None:
        if not self.folder.exists():
            return
        entries = sorted(
            (p for p in self.folder.iterdir() if p.is_dir() and p not in keep), key=lambda p: p.stat().st_mtime
        )
        sizes = {p: _size(p) for p in entries}
        used = sum(sizes.values()) + sum(_size(p) for p in keep if p.exists())
        for entry in entries:
            if used + size <= self.max_bytes:
                return
            remove_folder(entry)
            used -= sizes[entry]

    def _compute(
        self, trunk: Trunk, texts: SlotTexts, folders: dict[int, Path], precision: torch.dtype, dtype: np.dtype[Any]
    ) -> bool:
        """Write the states of these forks in `dtype`; False, and nothing written, where some overflow it."""
        device = next(trunk.parameters()).device
        lengths = np.asarray([len(row.ids) for row in texts.rows])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        scratch = {fork: scratch_folder(folder) for fork, folder in folders.items()}
        flat = {
            fork: np.lib.format.open_memmap(
                path / "states.npy", mode="w+", dtype=dtype, shape=(int(offsets[-1]), trunk.width)
            )
            for fork, path in scratch.items()
        }
        for rows in by_length(lengths, TOKENS_PER_PASS):
            batch = collate([texts.rows[i] for i in rows], trunk.encoder.reader.pad_id)
            with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                states = trunk.states(batch.to(device), folders)
            for fork, values in states.items():
                kept = values.to(torch.float16 if dtype == np.float16 else torch.float32).cpu().numpy()
                for row, text in enumerate(rows):
                    flat[fork][offsets[text] : offsets[text + 1]] = kept[row, : lengths[text]]
                if dtype == np.float16 and not np.isfinite(kept).all():
                    for path in scratch.values():
                        shutil.rmtree(path)
                    return False
        for fork, folder in folders.items():
            flat[fork].flush()
            np.save(scratch[fork] / "offsets.npy", offsets)
            publish_folder(scratch[fork], folder)
        return True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
