"""Writes that are there completely or not at all, and the lock that keeps two writers apart.

Every change of a file or folder that must survive a kill goes through here: the content is written beside its
destination under a name that starts with `STAGING`, forced to disk, and put in place by one rename. A kill leaves the
old content or the new one, and at most a staging entry that `clear_leftovers` removes.

This module knows nothing about what is written: no stages, no bundles, no formats beyond JSON.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trunkline.errors import StoreError

STAGING = ".staging-"


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8; NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of `path` (its folder exists); a kill leaves the old content or the new."""
    staging = staging_path(path)
    try:
        with staging.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; newlines are written as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of readable JSON: sorted keys, indented, a final newline; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def staging_path(destination: Path) -> Path:
    """A fresh name beside `destination`, on the same file system, that no reader takes for content."""
    return destination.with_name(f"{STAGING}{secrets.token_hex(6)}-{destination.name}")


def scratch_folder(destination: Path) -> Path:
    """A fresh, empty folder beside `destination` to build its content in (its parent is made if absent)."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = staging_path(destination)
    folder.mkdir()
    return folder


def publish_folder(scratch: Path, destination: Path) -> bool:
    """Force a finished folder to disk and rename it to `destination`; a kill leaves no folder there or the whole of it.

    Folders published this way are named by their content: one that is there already stays, `scratch` is removed, and
    the answer is False.
    """
    sync_tree(scratch)
    try:
        scratch.rename(destination)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(scratch)
        return False
    sync_folder(destination.parent)
    return True


def remove_folder(folder: Path) -> None:
    """Remove a folder: a kill leaves the whole of it or none, and at most a staging entry."""
    doomed = staging_path(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sync_folder(folder: Path) -> None:
    """Force the entries of one folder (names, not contents) to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and itself, to disk; links are not followed."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.is_symlink():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def clear_leftovers(folder: Path, name: str | None = None) -> list[str]:
    """Remove what killed writers left directly in `folder` (of `name` alone, if given) and return the names removed.

    The caller holds the lock under which these writers work.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.name.startswith(STAGING) or (name is not None and not path.name.endswith(f"-{name}")):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        removed.append(path.name)
    return removed


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float = 10.0) -> Iterator[None]:
    """Hold the lock file `path` (made with its folder if absent); StoreError if another holds it for `wait` seconds.

    The kernel drops the lock when its holder dies, so a killed process never blocks the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(f"another process is writing here: it holds {path}") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


class InUse:
    """Marks a folder as read by this process until `close`, or until the process ends; `in_use` tells others.

    Nothing is written. A folder that is not there, or whose file system has no locks, stays unmarked.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = _opened(folder)
        deadline = time.monotonic() + 1.0
        while self._descriptor is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:  # somebody asks `in_use` at this very moment
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.001)
            except OSError:
                return

    def close(self) -> None:
        """Take the mark away."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def in_use(folder: Path) -> bool:
    """Whether any process, this one included, marks the folder with `InUse`."""
    descriptor = _opened(folder)
    if descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
