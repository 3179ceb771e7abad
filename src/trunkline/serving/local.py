"""Sockets by which a command on the same machine reaches the servers of a project, one for each server.

They lie in a folder of the project's store that only its owner can enter: whoever connects is that user, so that no key
is asked for. A socket goes with its server; one that a killed server left is removed by whoever comes across it. What
is said is HTTP (see `app.py`); this module knows only files and sockets.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trunkline.atomic import exclusive
from trunkline.errors import StoreError
from trunkline.serving.logs import log

_LOCK = "lock"
_PATIENCE = 1.0  # seconds in which a server takes a connection, unless it is stopped or hangs
_LONGEST = 100  # bytes of an address that every system takes


@contextlib.contextmanager
def listening(store: Path, name: str) -> Iterator[socket.socket | None]:
    """A socket for a server that listens at `name`, until the end of the block.

    None where the store cannot hold one, for instance as it is mounted for reading: the log says why.
    """
    try:
        folder = _own(_folder(store))
        with exclusive(folder / _LOCK):  # no other process may find it before it listens
            _live(folder)
            path = folder / f"{name}-{secrets.token_hex(4)}.sock"
            made = _listen(path)
    except (OSError, StoreError) as error:
        log(logging.INFO, "no commands from this machine", reason=str(error))
        yield None
        return
    try:
        with made:
            yield made
    finally:
        path.unlink(missing_ok=True)


def servers(store: Path) -> list[Path]:
    """The sockets of the servers that run for this user. Raises OSError, StoreError."""
    folder = _folder(store)
    if not folder.is_dir():
        return []
    with exclusive(folder / _LOCK):
        return _live(folder)


def connect(path: Path) -> socket.socket:
    """A connection to a server. Raises ConnectionRefusedError or FileNotFoundError where it has ended, TimeoutError
    where it takes none.
    """
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(_PATIENCE)
    try:
        with _short(path) as address:
            client.connect(address)
    except BlockingIOError as error:  # what a full backlog gives where there is a limit of time
        client.close()
        raise TimeoutError(f"{path} takes no connection") from error
    except BaseException:
        client.close()
        raise
    return client


def name_of(path: Path) -> str:
    """The name of the server whose socket this is."""
    return path.stem.rpartition("-")[0]


def _folder(store: Path) -> Path:
    return store / f"servers-{os.getuid()}"


def _own(folder: Path) -> Path:
    """The folder, made where it is absent, as one that nobody else can enter. Raises OSError where it is another's."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    folder.chmod(0o700)
    return folder


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as address:
            made.bind(address)
        path.chmod(0o600)
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def _live(folder: Path) -> list[Path]:
    """The sockets in a folder behind which someone listens; the others are removed."""
    found = []
    for path in sorted(folder.glob("*.sock")):
        try:
            connect(path).close()
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # its server just ended
        except TimeoutError:
            found.append(path)  # its server is there, and hangs
        else:
            found.append(path)
    return found


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path, or a shorter one to the same place where it is longer than an address may be."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
        link = Path(folder, "to")
        link.symlink_to(path.parent.resolve())
        yield str(link / path.name)
