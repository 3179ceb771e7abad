"""A job's shards made by processes of this machine, each with a scorer of its own.

Knows processes and what they tell; nothing of models. Shards are shared out by claims, so that any number of these, on
any number of machines with one file system, may work on one job.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from trunkline.atomic import InUse
from trunkline.errors import TrunklineError
from trunkline.machine import asked_threads, usable_cores
from trunkline.pipeline.scoring import Work
from trunkline.pipeline.shards import Job, Made, Scorer

_NAME = "trunkline shards"


class Heard(Protocol):
    """Told of everything that is done on a job."""

    def say(self, text: str) -> None:
        """A line worth keeping."""

    def moved(self, rows: int) -> None:
        """So many more rows are scored."""

    def made(self, made: Made) -> None:
        """A shard is there."""


@dataclass(frozen=True)
class _Failed:
    """Why a process gave up."""

    reason: str


def usual_processes(threads: int, device: str) -> int:
    """As many as keep all cores busy; one where a GPU computes."""
    return 1 if device.startswith("cuda") else max(1, (asked_threads() or usable_cores()) // threads)


def make_all(job: Job, work: Work, processes: int, heard: Heard) -> None:
    """Make what is missing of a job that is begun. Raises TrunklineError where a process fails or dies; what was made
    stays.
    """
    context = multiprocessing.get_context("spawn")
    crew: dict[Connection, multiprocessing.process.BaseProcess] = {}
    died: int | None = None
    try:
        for _ in range(min(processes, len(job.missing()))):
            ours, theirs = context.Pipe(duplex=False)
            crew[ours] = context.Process(target=_work, args=(theirs, job, work), name=_NAME, daemon=True)
            crew[ours].start()
            theirs.close()
        while crew:
            for connection in wait(list(crew)):
                assert isinstance(connection, Connection)
                try:
                    told = connection.recv()
                except EOFError:
                    ended = crew.pop(connection)
                    ended.join()
                    died = ended.exitcode or died
                    continue
                if isinstance(told, _Failed):
                    raise TrunklineError(told.reason)
                if isinstance(told, Made):
                    heard.made(told)
                else:
                    heard.moved(told)
    finally:
        for left in crew.values():
            left.kill()
            left.join()
    if died is not None and job.missing():
        why = f"signal {-died}; there may be too little memory for so many processes" if died < 0 else f"code {died}"
        raise TrunklineError(f"a process ended with {why}. What was made stays: the same command goes on from here")


def scorer_of(work: Work) -> Scorer:
    """A scorer in this process, which from now on computes with as many threads as `work` says."""
    os.environ.update(OMP_NUM_THREADS=str(work.threads), TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(work.threads)
    return work.load()


def _work(connection: Connection, job: Job, work: Work) -> None:
    """Make shards until none is left, or whoever began this is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that began ends the others
    mark = InUse(job.folder)
    try:
        for made in job.make(lambda: scorer_of(work), connection.send):
            connection.send(made)
    except BrokenPipeError:
        pass
    except (TrunklineError, OSError) as error:
        connection.send(_Failed(str(error)))
    except Exception as error:
        connection.send(_Failed(f"{type(error).__name__}: {error}"))
        raise  # with its traceback: nobody foresaw it
    finally:
        mark.close()
