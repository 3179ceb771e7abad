"""The sockets of a project's servers: whose they are, and which of them are still there."""

from __future__ import annotations

import contextlib
import socket
import stat
from pathlib import Path

import pytest

from trunkline.serving import local


def heard(path: Path, server: socket.socket) -> bytes:
    """What goes from a client to the server through a socket."""
    said = b""
    with local.connect(path) as client:
        client.sendall(b"hello")
        while not said:  # others only looked whether it is there
            with server.accept()[0] as connection:
                said = connection.recv(100)
    return said


@pytest.mark.parametrize("deep", [0, 200])
def test_a_server_is_reached_at_any_depth_and_by_its_user_alone(tmp_path: Path, deep: int) -> None:
    store = tmp_path / ("d" * deep) / ".trunkline"
    store.mkdir(parents=True)
    assert local.servers(store) == []
    with local.listening(store, "127.0.0.1:8000") as one, local.listening(store, "[::1]:9") as other:
        assert one is not None
        assert other is not None
        one_path, other_path = local.servers(store)
        assert (local.name_of(one_path), local.name_of(other_path)) == ("127.0.0.1:8000", "[::1]:9")
        assert stat.S_IMODE(one_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(one_path.parent.stat().st_mode) == 0o700
        for path, server in ((one_path, one), (other_path, other)):
            assert heard(path, server) == b"hello"
    assert not list(one_path.parent.glob("*.sock"))


def test_a_folder_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    with local.listening(tmp_path, "a"):
        [path] = local.servers(tmp_path)
    path.parent.chmod(0o777)
    with local.listening(tmp_path, "a"):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_socket_of_a_killed_server_is_removed_by_whoever_comes_next(tmp_path: Path) -> None:
    with local.listening(tmp_path, "killed") as killed:
        assert killed is not None
        [path] = local.servers(tmp_path)
        killed.close()  # as the system does it, without removing the file
        with local.listening(tmp_path, "next"):
            assert [local.name_of(found) for found in local.servers(tmp_path)] == ["next"]
        assert not path.exists()
    with local.listening(tmp_path, "killed") as killed:
        assert killed is not None
        [path] = local.servers(tmp_path)
        killed.close()
        assert local.servers(tmp_path) == []
        assert not path.exists()


def test_where_no_socket_can_be_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with local.listening(tmp_path, "a"):
        [path] = local.servers(tmp_path)
    (path.parent / "lock").unlink()
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path / "elsewhere")
    for store in (tmp_path, tmp_path / "absent"):  # through a link that another may have laid, and without a store
        with local.listening(store, "a") as made:
            assert made is None
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_server_that_takes_no_connection_is_there_and_holds_up_nobody(tmp_path: Path) -> None:
    with local.listening(tmp_path, "stuck") as made, contextlib.ExitStack() as waiting:
        assert made is not None
        made.listen(0)
        (path,) = local.servers(tmp_path)
        with contextlib.suppress(TimeoutError):
            while True:  # until nothing more fits into its backlog
                waiting.enter_context(local.connect(path))
        assert local.servers(tmp_path) == [path]
