"""Which bundle is live, and which were before: `.trunkline/releases.json`.

The file changes by one rename, under a lock: a kill leaves the old release or the new one. A release moves only to a
bundle that is whole. Knows folders and manifests; nothing of models or of how a bundle was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trunkline.atomic import clear_leftovers, exclusive, write_json
from trunkline.bundle.manifest import bundle_id, verify
from trunkline.errors import BundleError, StoreError, UsageError, unknown

FILE = "releases.json"
LOCK = "releases.lock"
BUNDLES = "bundles"


class Release(BaseModel):
    """One move of the live bundle: `id` counts them ("r1", "r2", …), `bundle` is its path from the project's store."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^r[1-9][0-9]*$")]
    bundle: Annotated[str, Field(pattern=rf"^{BUNDLES}/[0-9a-f]{{16}}$")]
    created: str
    note: str
    tasks: dict[str, str]


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    live: str | None = None
    history: tuple[Release, ...] = ()


class Difference(BaseModel):
    """Tasks by what became of their branch between two releases."""

    model_config = ConfigDict(frozen=True)

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]


class Releases:
    """The releases of the project whose store is the folder `home`; a change waits `wait` seconds for its turn."""

    def __init__(self, home: Path, *, wait: float = 10.0) -> None:
        self.home = home
        self.wait = wait

    def live(self) -> Release | None:
        """The release that is live, None before the first."""
        state = self._read()
        return None if state.live is None else _find(state, state.live)

    def list(self) -> tuple[Release, ...]:
        """All releases, oldest first."""
        return self._read().history

    def get(self, id: str) -> Release:
        """The release of this id. Raises UsageError where there is none."""
        return _find(self._read(), id)

    def folder(self, release: Release) -> Path:
        """The bundle of a release."""
        return self.home / release.bundle

    def publish(self, bundle: Path, note: str = "") -> Release:
        """Make a bundle of this store live; one that is live already stays so, and nothing is written.

        Raises BundleError where the bundle is not whole or not in the store, StoreError where another process is
        publishing.
        """
        if bundle.resolve().parent != (self.home / BUNDLES).resolve():
            raise BundleError(f"{bundle} is not in {self.home / BUNDLES}, so this project cannot release it")
        with self._turn():
            state = self._read()
            manifest = self._whole(bundle.name)
            live = None if state.live is None else _find(state, state.live)
            if live is not None and live.bundle == f"{BUNDLES}/{bundle.name}":
                return live
            release = Release(
                id=_next_id(state),
                bundle=f"{BUNDLES}/{bundle.name}",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                note=note,
                tasks=manifest,
            )
            self._write(_State(live=release.id, history=(*state.history, release)))
        return release

    def rollback(self, to: str | None = None) -> Release:
        """Make release `to` live again, by default the one before the live one; the history stays as it is.

        Raises UsageError where there is no such release, BundleError where its bundle is not whole any more.
        """
        with self._turn():
            state = self._read()
            release = _before(state) if to is None else _find(state, to)
            self._whole(Path(release.bundle).name)
            if release.id != state.live:
                self._write(_State(live=release.id, history=state.history))
        return release

    def diff(self, old: str, new: str) -> Difference:
        """What changed for each task from one release to another. Raises UsageError for an unknown id."""
        state = self._read()
        before, after = _find(state, old).tasks, _find(state, new).tasks
        both = sorted(before.keys() & after.keys())
        return Difference(
            added=tuple(sorted(after.keys() - before.keys())),
            removed=tuple(sorted(before.keys() - after.keys())),
            changed=tuple(task for task in both if before[task] != after[task]),
            same=tuple(task for task in both if before[task] == after[task]),
        )

    def forget(self, keep: int) -> tuple[Release, ...]:
        """Drop all but the newest `keep` (at least one) and the live release; returns the dropped. Bundles stay."""
        with self._turn():
            state = self._read()
            newest = {release.id for release in state.history[-max(1, keep) :]} | {state.live}
            dropped = tuple(release for release in state.history if release.id not in newest)
            if dropped:
                kept = tuple(release for release in state.history if release.id in newest)
                self._write(_State(live=state.live, history=kept))
        return dropped

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with exclusive(self.home / LOCK, wait=self.wait):
            clear_leftovers(self.home, FILE)
            yield

    def _whole(self, name: str) -> dict[str, str]:
        """Task -> branch hash of a bundle that is complete and unchanged; BundleError otherwise."""
        folder = self.home / BUNDLES / name
        manifest = verify(folder)
        if bundle_id(folder) != name:
            raise BundleError(f"{folder} is not named by its content: its id is {bundle_id(folder)}")
        return manifest.hashes()

    def _read(self) -> _State:
        path = self.home / FILE
        try:
            state = _State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _State()
        except (OSError, ValidationError) as error:
            raise StoreError(f"{path} cannot be read as the list of releases: {error}") from None
        if state.live is not None and all(release.id != state.live for release in state.history):
            raise StoreError(f"{path}: the live release {state.live} is not in its history")
        return state

    def _write(self, state: _State) -> None:
        write_json(self.home / FILE, state.model_dump(mode="json"))


def _find(state: _State, id: str) -> Release:
    for release in state.history:
        if release.id == id:
            return release
    raise UsageError(unknown("release", id, (release.id for release in state.history)))


def _before(state: _State) -> Release:
    """The release before the live one."""
    ids = [release.id for release in state.history]
    position = ids.index(state.live) if state.live is not None else 0
    if position == 0:
        raise UsageError("there is no release before the live one to roll back to")
    return state.history[position - 1]


def _next_id(state: _State) -> str:
    # The newest release is never forgotten, so an id is never given twice.
    return f"r{max((int(release.id.removeprefix('r')) for release in state.history), default=0) + 1}"
