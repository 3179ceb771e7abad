"""What the benchmarks of the server share: bundles on disk, servers in processes of their own.

A bundle has eight single-layer [CLS] branches at the last fork of the packaged trunk, or of one of BERT-base's shape,
with random weights, on which speed does not depend. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shapes import branch_of, source_of, trunk_of

from trunkline.atomic import write_json
from trunkline.bench.texts import made_texts
from trunkline.bundle.manifest import verify
from trunkline.bundle.merge import merge
from trunkline.errors import BundleError
from trunkline.model.branch import save_branch

RESULT = Path(__file__).resolve().parent / "results" / "server.json"
TASKS = tuple(f"task{number}" for number in range(8))
SECOND = TASKS[4:]
"""The tasks whose branches differ between the first and the second bundle of a shape."""
TOKENS = 32
_PROBES = 8
_SPREAD = 30.0
"""Fresh output layers say "a third each" to every text; so much larger, their scores spread over the whole range."""
_START = 900.0
_END = 30.0


def bundle_of(shape: str, work: Path, *, second: bool = False) -> Path:
    """The first or the second bundle of a shape; both stand in one folder. Made once for a `work` folder."""
    folder = work / "bundles" / shape
    note = work / "bundles" / f"{shape}-{'second' if second else 'first'}.json"
    if note.is_file():
        made = folder / json.loads(note.read_text())["bundle"]
        with contextlib.suppress(BundleError, OSError):
            verify(made)
            return made
    previous = bundle_of(shape, work) if second else None
    trunk = trunk_of(shape, work)
    files = {}
    (work / "branches").mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(TASKS):
        torch.manual_seed(number + 100 * (second and task in SECOND))
        branch = branch_of(trunk, task, 1)
        with torch.no_grad():
            branch.head.output.weight *= _SPREAD
        files[task] = work / "branches" / f"{shape}-{task}.safetensors"
        save_branch(branch, files[task])
    probes = made_texts(12, _PROBES, random.Random(0))
    made = merge(source_of(shape, work), files, probes, folder, previous, name=f"{shape}-shape")
    write_json(note, {"bundle": made.name})
    return made


@dataclass(frozen=True)
class Cores:
    """Which cores the load generator runs on, and which all else; None where they share all of them."""

    load: tuple[int, ...] | None
    server: tuple[int, ...] | None

    @classmethod
    def kept_apart(cls) -> Cores:
        """One core for the load where there are at least four; this process and its children leave it alone."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 4:
            return cls(None, None)
        os.sched_setaffinity(0, usable[:-1])
        return cls((usable[-1],), tuple(usable[:-1]))

    def count(self) -> int:
        """Cores that the server may use."""
        return len(os.sched_getaffinity(0))

    def words(self) -> str:
        """For readers."""
        if self.load is None:
            return f"the load generator shares the {self.count()} cores with the server; its CPU time is in the tables"
        return f"the load generator is kept to core {self.load[0]}, all else to the other {self.count()}"


class Server:
    """A server in a process of its own; `log` gets what it prints. It is ready when `ready` answers 200."""

    def __init__(
        self, command: Sequence[str], port: int, ready: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log = log
        self._ready = ready
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )

    def wait(self, seconds: float = _START) -> None:
        """Until it is ready. Raises RuntimeError with the end of its log where it ends or takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.get(self._ready)[0] == 200:
                    return
            time.sleep(0.1)
        last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-3:]
        raise RuntimeError(f"it did not start: {' / '.join(last)}")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def pids(self) -> dict[str, int]:
        """The processes: "front", and "worker" where it has one."""
        found = {"front": self.process.pid}
        for pid in _children(self.process.pid):
            if b"spawn_main" in _line(pid) and b"resource_tracker" not in _line(pid):
                found["worker"] = pid
        return found

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each process so far."""
        return {name: _cpu(pid) for name, pid in self.pids().items()}

    def pause(self) -> None:
        """Stop the process where it stands, so that it takes nothing while another is measured."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def trunkline(bundle: Path, log: Path, *options: str) -> Iterator[Server]:
    """`trunkline serve` over a bundle, ready."""
    port = free_port()
    command = [sys.executable, "-m", "trunkline", "serve", str(bundle), "--port", str(port), *options]
    with running(Server(command, port, "/health/ready", log)) as server:
        yield server


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server once it is ready; it ends with the block."""
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def figures(server: Server) -> dict[str, float]:
    """What a Trunkline server has at /metrics, by name and labels. Raises OSError where it does not answer."""
    lines = (line for line in server.get("/metrics")[1].splitlines() if line[:1] not in ("#", ""))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that it takes its servers with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def rounded(value: Any, digits: int = 4) -> Any:
    """Every float in a result to so many digits."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    return value


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
