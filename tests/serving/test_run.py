"""`trunkline serve` as users start it: a process, a port, a real bundle, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")
pytest.importorskip("uvicorn", reason="the server's tests need the extra serve")

import httpx
from branches import ALL_SORTS, INPUTS
from serving.conftest import Bundles

from trunkline.bundle import Bundle
from trunkline.errors import TrunklineError, UsageError
from trunkline.predicting import answers_of
from trunkline.serving.command import limits_of, serve
from trunkline.serving.limits import Limits

TEXT = "remind me never to show this text in a log"


@dataclass
class Running:
    """A server that has said that it serves."""

    process: subprocess.Popen[str]
    url: str
    greeting: list[str]


@contextmanager
def serving(*arguments: str, project: Path = Path(), **environment: str) -> Iterator[Running]:
    """`trunkline serve` with these arguments, until the end of the block."""
    command = [sys.executable, "-m", "trunkline", "-C", str(project), "serve"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--engine", "torch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        greeting = [process.stdout.readline() for _ in range(3)]
        assert greeting[0], process.communicate()[1]
        yield Running(process, greeting[0].split()[-1], greeting)
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


def test_a_server_answers_as_the_library_does_swaps_and_ends_in_order_on_sigterm(bundles: Bundles) -> None:
    with (
        serving(str(bundles.first), "--floor", "0.98", TRUNKLINE_ADMIN_KEY="secret key") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        assert running.greeting[0].startswith(f"serving served, bundle {bundles.first.name}, at http://127.0.0.1:")
        assert running.greeting[1].split() == ["tasks", *", ".join(sorted(ALL_SORTS)).split()]
        assert running.greeting[2].split() == ["engine", "torch,", "float32,", "cpu"]
        assert running.process.stdout is not None
        assert "0.98 under load, for no task" in running.process.stdout.readline()
        assert client.get("/health/ready").json() == {"ready": True}

        inputs = [{"text": item.text, "text_pair": item.text_pair} for item in INPUTS]
        odd = [TEXT, "\ud800", "", 5, {"text": "a", "words": [[0, 9]]}]
        body = json.dumps({"inputs": [*inputs, *odd]})
        reply = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 200
        expected = Bundle.load(bundles.first, engine="torch").predict([*INPUTS, *odd])
        for found, right in zip(reply.json()["results"], map(answers_of, expected), strict=True):
            for task, answer in right.items():
                found[task].pop("branch", None)
                assert same(found[task], answer), task

        swapped = client.post(
            "/admin/release", json={"bundle": bundles.second.name}, headers={"Authorization": "Bearer secret key"}
        )
        assert swapped.status_code == 200, swapped.text
        assert client.post("/v1/predict", json={"inputs": [TEXT]}).json()["bundle"] == bundles.second.name

        with ThreadPoolExecutor(8) as pool:
            answered = threading.Event()

            def ask(_: int) -> int | None:
                try:
                    with httpx.Client(base_url=running.url, timeout=60) as one:
                        return one.post("/v1/predict", json={"inputs": [TEXT] * 64}).status_code
                except httpx.TransportError:
                    return None  # it came after the port was closed
                finally:
                    answered.set()

            statuses = pool.map(ask, range(64))
            answered.wait()
            running.process.send_signal(signal.SIGTERM)
            assert set(statuses) <= {200, 503, None}
        out, log = running.process.communicate(timeout=60)
        assert running.process.returncode == 0, log
        assert out == ""
        lines = [json.loads(line) for line in log.splitlines()]
        assert {"request", "draining"} <= {line["event"] for line in lines}
        assert not [line for line in lines if line["level"] in ("error", "critical")]
        assert TEXT not in log
        assert "secret key" not in log


def same(found: object, right: object) -> bool:
    """Whether two answers are equal but for the last digits of their scores."""
    if isinstance(right, dict) and isinstance(found, dict):
        return found.keys() == right.keys() and all(same(found[key], right[key]) for key in right)
    if isinstance(right, list) and isinstance(found, list):
        return len(found) == len(right) and all(map(same, found, right))
    return found == pytest.approx(right, abs=1e-5) if isinstance(right, float) else found == right


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a bundle"),
        (["nowhere", "--engine", "magic"], "unknown engine 'magic'"),
        (["nowhere", "--dtype", "float3"], "unknown dtype 'float3' .did you mean 'float32'"),
        (["nowhere", "--device", "cuda:one"], "unknown device 'cuda:one'"),
        (["nowhere", "--log-level", "all"], "unknown log level 'all'"),
        (["nowhere", "--limit", "rows=5"], "unknown limit 'rows'"),
        (["nowhere", "--api-key-file", "no-file"], "the key file no-file cannot be read"),
        ([], "is no project: name a bundle to serve, or the project's folder with -C"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(serve)
    with pytest.raises(TrunklineError, match=message):
        app(arguments, standalone_mode=False)


def test_a_port_in_use_is_said_at_once(bundles: Bundles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "trunkline", "serve", str(bundles.first), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr


def test_limits_are_named_with_their_numbers() -> None:
    assert limits_of(["items=5", "drain_seconds=0.5"]) == Limits(items=5, drain_seconds=0.5)
    assert limits_of([]) == Limits()
    assert limits_of(["floor=0.98"]).floor == 0.98


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("item=5", "did you mean 'items'"),
        ("items", "--limit items: write NAME=NUMBER"),
        ("items=0", "--limit items=0: Input should be greater than or equal to 1"),
        ("items=many", "--limit items=many: "),
        ("deadline_ms=inf", "--limit deadline_ms=inf: "),
        ("floor=2", "--limit floor=2: Input should be less than or equal to 1"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        limits_of([given])
