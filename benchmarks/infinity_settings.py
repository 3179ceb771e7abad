"""Infinity as the benchmarks serve it: the settings that are tried, and a server with one of them.

Everything runs in Infinity's own environment, whose Python is given; without telemetry, and offline.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from served import TASKS, Server, free_port, running

if TYPE_CHECKING:
    from server import Load

HERE = Path(__file__).resolve().parent
QUIET = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_LONG = 900.0  # seconds: torch.compile builds its kernels at the first request


@dataclass(frozen=True)
class Settings:
    """Models of a kind (see infinity_models.py), options for all of them, and environment variables."""

    models: str
    options: tuple[str, ...]
    environment: Mapping[str, str]


def _torch(dtype: str, *options: str, batch: int = 32, threads: int | None = None) -> Settings:
    given = options or ("--no-bettertransformer", "--no-compile")
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return Settings("torch", ("--engine", "torch", "--dtype", dtype, *given, "--batch-size", str(batch)), environment)


def _onnx(models: str, *options: str) -> Settings:
    return Settings(models, ("--engine", "optimum", *options), {})


_BETTER = ("--bettertransformer", "--no-compile")
_COMPILE = ("--no-bettertransformer", "--compile")
SETTINGS = {
    "torch float32": _torch("float32"),
    "torch float32, bettertransformer": _torch("float32", *_BETTER),
    "torch float32, bettertransformer, 1 thread": _torch("float32", *_BETTER, threads=1),
    "torch bfloat16": _torch("bfloat16"),
    "torch bfloat16, 1 thread": _torch("bfloat16", threads=1),
    "torch bfloat16, 1 thread, batch 64": _torch("bfloat16", threads=1, batch=64),
    "torch bfloat16, bettertransformer": _torch("bfloat16", *_BETTER),
    "torch bfloat16, bettertransformer, 1 thread": _torch("bfloat16", *_BETTER, threads=1),
    "torch bfloat16, compile, 1 thread": _torch("bfloat16", *_COMPILE, threads=1),
    "torch int8": _torch("int8"),
    "torch int8, 1 thread": _torch("int8", threads=1),
    "optimum float32": _onnx("onnx"),
    "optimum int8": _onnx("onnx-int8", "--onnx-disable-optimize"),
}
"""What may be the fastest of it. A thread a model, as its eight models are run at once anyway, and it spares them from
fighting for the cores; 8-bit arithmetic is a lower precision than ours, and is let in all the same."""


def missing(python: Path | None) -> str | None:
    """Why there is no Infinity at this Python, None where there is one."""
    if python is None:
        return "no --infinity-python was given"
    done = subprocess.run([str(python), "-c", "import infinity_emb"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"infinity_emb cannot be imported: {done.stderr.strip()[-300:]}"


class Infinity:
    """Infinity with eight classifiers of a shape and the settings of the name `settings`."""

    WAYS = ("at-once", "in-turn")

    def __init__(self, python: Path, shape: str, encoder: Path, work: Path) -> None:
        self.settings = next(iter(SETTINGS))
        self._python = python
        self._folder = (work / "infinity" / shape).resolve()
        self._log = work / "infinity.log"
        self._server: Server | None = None
        make = [str(python), str(HERE / "infinity_models.py"), str(encoder), str(self._folder)]
        subprocess.run([*make, "--count", str(len(TASKS))], check=True, stdout=sys.stderr)

    def version(self) -> str:
        """Versions of what it is made of."""
        names = ("infinity_emb", "torch", "transformers", "optimum", "onnxruntime")
        script = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        done = subprocess.run([str(self._python), "-c", script, *names], capture_output=True, text=True)
        return done.stdout.strip() or names[0]

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """The server, ready and paused. Raises RuntimeError where it does not start."""
        settings, port = SETTINGS[self.settings], free_port()
        command = [str(self._python), str(HERE / "infinity_server.py"), "v2"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        for task in TASKS:
            command += ["--model-id", str(self._folder / settings.models / task), "--served-model-name", task]
        # Its own warm-up runs 512 tokens through every model, which takes minutes; `warm` runs what is measured.
        command += [*settings.options, "--device", "cpu", "--no-model-warmup", "--log-level", "warning"]
        server = Server(command, port, "/health", self._log, {**QUIET, **settings.environment})
        with running(server):
            self._server = server
            server.pause()
            yield
        self._server = None

    @contextlib.contextmanager
    def awake(self) -> Iterator[Server]:
        """The server, running until the end of the block: its many threads poll, and take time even when idle."""
        assert self._server is not None
        self._server.resume()
        yield self._server
        self._server.pause()

    def warm(self, load: Load) -> None:
        """One request to each model, which may compile for minutes, then a moment of load."""
        with self.awake() as server:
            for task in TASKS:
                body = json.dumps({"model": task, "input": ["a text to begin with"] * 32}).encode()
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(server.url + "/classify", body, headers)
                try:
                    urllib.request.urlopen(request, timeout=_LONG).read()
                except OSError as error:
                    raise RuntimeError(f"it does not answer: {error}") from error
            load.on(server, TASKS, "many", way="at-once", seconds=2.0)
