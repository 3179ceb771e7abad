"""A job's shards made by Ray Data, on a cluster whose machines see the job's files under the same paths.

One block for each missing shard goes to a pool of actors, each with a scorer of its own, which write shards as the
processes of one machine do: claimed, whole, and byte for byte the same. Only their numbers travel.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from trunkline.atomic import InUse
from trunkline.errors import MissingExtra, TrunklineError
from trunkline.pipeline.crew import Heard, scorer_of
from trunkline.pipeline.scoring import Work
from trunkline.pipeline.shards import Job, Made, Scorer


def make_on_ray(job: Job, work: Work, address: str, heard: Heard) -> None:
    """Make what is missing of a job that is begun, on the cluster at this address; `local` is a Ray of this machine
    alone, for as long as the job takes. Raises MissingExtra without Ray, TrunklineError where a task fails; what was
    made stays.
    """
    missing = [shard.number for shard in job.missing()]
    if not missing:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("ray", "--ray") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        heard.moved(0)
        shards = ray.data.from_items([{"number": number} for number in missing], override_num_blocks=len(missing))
        made = shards.map_batches(
            _Maker,
            fn_constructor_args=(job, work),
            batch_size=1,
            num_cpus=work.threads,
            num_gpus=int(work.device.startswith("cuda")),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(missing)),
        )
        for row in made.iter_rows():
            heard.moved(int(row["rows"]))
            heard.made(Made(int(row["number"]), int(row["rows"]), float(row["seconds"])))
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1]
        raise TrunklineError(f"Ray: {said}. What was made stays: the same command goes on from here") from error
    finally:
        if ours:
            ray.shutdown()


class _Maker:
    """An actor: makes the shards whose numbers it is sent."""

    def __init__(self, job: Job, work: Work) -> None:
        self._job = job
        self._work = work
        self._mark = InUse(job.folder)
        self._scorer: Scorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        wanted = {int(number) for number in batch["number"]}
        found = list(self._job.make(self._load, lambda rows: None, wanted))
        return {name: np.asarray([getattr(made, name) for made in found]) for name in Made._fields}

    def _load(self) -> Scorer:
        if self._scorer is None:
            self._scorer = scorer_of(self._work)
        return self._scorer
