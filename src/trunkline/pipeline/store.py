"""The store of finished stages: content-addressed folders, written whole or not at all.

Knows keys, folders and bytes. Does not know what a stage does.

    .trunkline/
      lock                        held by whoever writes
      stages/<key>/stage.json     fields, inputs, result; artifacts lie beside it
      work/<key>/                 checkpoints of an unfinished stage
      states/                     a cache of trunk states (training/states.py) and of what teachers said of train rows
      trunks/<fingerprint>/       trunks that bundles link to
      bundles/<id>/  releases.json
      selections/<id>.json        what was selected for a bundle
      hashes.json                 content hashes by path, size and time
      plan.json                   what the last run was made of, for "why"
      adapting.json               key of an adaptation of the trunk that is not over, so that `gc` leaves it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.atomic import (
    STAGING,
    canonical_json,
    clear_leftovers,
    exclusive,
    publish_folder,
    scratch_folder,
    write_json,
)
from trunkline.errors import StoreError

FOLDER = ".trunkline"


def key_of(value: Any) -> str:
    """The content address of a JSON value: 32 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A finished stage on disk."""

    key: str
    folder: Path
    fields: dict[str, Any]
    result: dict[str, Any]


class Store:
    """Finished stages below `root/.trunkline`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self.stages = self.folder / "stages"
        self.work = self.folder / "work"
        self.states = self.folder / "states"
        self.trunks = self.folder / "trunks"
        self.bundles = self.folder / "bundles"
        self.selections = self.folder / "selections"
        self.hashes = self.folder / "hashes.json"
        self._adapting = self.folder / "adapting.json"
        self._holder: int | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store against other writers (else StoreError); removes what a killed one left half-written.

        The thread that holds it may ask again.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with exclusive(self.folder / "lock", wait=1.0):
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            for folder in (self.folder, self.stages, self.states, self.bundles, self.trunks, self.selections):
                clear_leftovers(folder)
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    def __contains__(self, key: str) -> bool:
        return (self.stages / key / "stage.json").exists()

    def get(self, key: str) -> Entry:
        """A finished stage. Raises StoreError if it is absent or damaged."""
        folder = self.stages / key
        try:
            stage = json.loads((folder / "stage.json").read_text())
            return Entry(key, folder, stage["fields"], stage["result"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"stage {key} in {self.stages} is damaged ({error}); delete that folder and run again"
            ) from error

    def put(self, key: str, fields: dict[str, Any], make: Callable[[Path, Path], dict[str, Any]]) -> Entry:
        """Run `make(artifacts, work)`, publish its artifacts with its result under `key`, and drop the work folder.

        A kill inside `make` leaves the work folder, which the next call finds.
        """
        work = self.work / key
        work.mkdir(parents=True, exist_ok=True)
        scratch = scratch_folder(self.stages / key)
        try:
            result = make(scratch, work)
            write_json(scratch / "stage.json", {"fields": fields, "result": result})
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        publish_folder(scratch, self.stages / key)
        shutil.rmtree(work)
        return self.get(key)

    def resumable(self, key: str) -> bool:
        """Whether an unfinished stage left a checkpoint to go on from."""
        work = self.work / key
        return work.is_dir() and any(not path.name.startswith(STAGING) for path in work.iterdir())

    def note_adapting(self, key: str | None) -> None:
        """Remember the key of an adaptation that begins, or with None that it is over."""
        if key is None:
            self._adapting.unlink(missing_ok=True)
        else:
            write_json(self._adapting, key)

    def adapting(self) -> str | None:
        """The key of an adaptation that began and did not end."""
        try:
            return str(json.loads(self._adapting.read_text()))
        except (OSError, ValueError):
            return None

    def size(self) -> int:
        """Bytes on disk, files with several names counted once."""
        files = {(s := path.stat()).st_ino: s.st_size for path in self.folder.rglob("*") if path.is_file()}
        return sum(files.values())
