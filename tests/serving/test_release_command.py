"""`trunkline release deploy`: a command on the same machine, and the servers that it tells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")
pytest.importorskip("uvicorn", reason="the server's tests need the extra serve")

from serving.conftest import Bundles
from serving.test_run import serving

from trunkline import cli
from trunkline.bundle import Releases
from trunkline.serving import local

Deploy = Callable[..., tuple[int, str]]


@pytest.fixture
def project(bundles: Bundles, tmp_path: Path) -> Path:
    """A project with two releases, the second live, in a folder whose path is longer than a socket's address."""
    root = tmp_path / ("deep" * 30) / "support"
    store = root / ".trunkline"
    releases = Releases(store)
    for bundle in (bundles.first, bundles.second):
        shutil.copytree(bundle, store / "bundles" / bundle.name)
        releases.publish(store / "bundles" / bundle.name)
    (root / "project.toml").touch()
    return root


@pytest.fixture
def release(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Deploy:
    """Calls `trunkline release …` in this process; its exit code and all that it says."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trunkline", "-C", str(project), "release", *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return int(str(code)), said.out + said.err

    return call


def test_a_server_takes_over_what_a_command_on_its_machine_says(
    project: Path, release: Deploy, bundles: Bundles
) -> None:
    first, second = bundles.first.name, bundles.second.name
    store = project / ".trunkline"
    with serving(project=project) as running:
        address = running.url.removeprefix("http://")

        def served() -> str:
            return str(httpx.get(f"{running.url}/v1/model").json()["bundle"])

        assert served() == second
        code, said = release("rollback")
        assert code == 0
        assert f"trunkline -C {project} release deploy" in said
        assert served() == second  # until it is told
        assert release("deploy") == (0, f"{address}  serves r1 (bundle {first}), before r2 (bundle {second})\n")
        assert served() == first
        assert release("deploy") == (0, f"{address}  serves r1 (bundle {first}) already\n")
        assert httpx.post(f"{running.url}/admin/release").status_code == 404  # over the network there is no such call

        branch = next((store / "bundles" / second / "branches").glob("intent-*"))
        whole = branch.read_bytes()
        branch.write_bytes(whole[:-1] + b"\x00")
        code, said = release("deploy", "r2")
        assert code == 1
        assert said.startswith(f"{address}  stays with r1 (bundle {first}): ")
        assert "is damaged" in said
        assert "1 of 1 servers did not take it over" in said
        assert served() == first
        branch.write_bytes(whole)

        with local.listening(store, "elsewhere") as silent:
            assert silent is not None
            silent.close()  # as if it had been killed
            code, said = release("deploy", "r2", "--json")
        assert code == 0
        assert json.loads(said) == [
            {"server": address, "outcome": "swapped", "bundle": second, "before": first, "reason": None}
        ]
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
        assert [path.name for path in (store / f"servers-{os.getuid()}").iterdir()] == ["lock"]


def test_where_no_server_runs_there_is_none_to_tell(release: Deploy) -> None:
    code, said = release("deploy")
    assert code == 1
    assert "no server of this project runs on this machine for this user" in said
    assert release("rollback", "r2") == (0, "release r2 is live\n")


def test_a_release_that_does_not_exist_is_named_before_anyone_is_told(release: Deploy) -> None:
    assert release("deploy", "r9") == (2, "trunkline: unknown release 'r9' (releases: r1, r2)\n")


def test_a_server_that_says_nothing_is_reported(
    project: Path, release: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.serving.release_command._PATIENCE", 0.1)
    with local.listening(project / ".trunkline", "127.0.0.1:1"):
        code, said = release("deploy")
    assert code == 1
    assert said.startswith("127.0.0.1:1  gave no answer: timed out")
