"""Shards made on a local Ray cluster of two nodes: the bytes of a single process."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sharded import Told, contents, finish, taught_project, write_rows
from tiny import tiny_encoder

from trunkline.pipeline.scoring import TeacherWork
from trunkline.pipeline.shards import Scorer, cut

# Ray warns of options of its own, which it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@dataclass(frozen=True)
class Met(TeacherWork):
    """Work that a node begins when two of them are there to do it."""

    meeting: Path

    def load(self) -> Scorer:
        import ray

        (self.meeting / ray.get_runtime_context().get_node_id()).touch()
        given_up = time.monotonic() + 60
        while len(list(self.meeting.iterdir())) < 2:
            if time.monotonic() > given_up:
                raise TimeoutError("one node was left to do all of it")
            time.sleep(0.1)
        return super().load()


def test_two_nodes_make_the_bytes_of_a_single_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="Ray is an extra", exc_type=ImportError)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # so that no token is left in the home folder
    import ray
    from ray.cluster_utils import Cluster

    from trunkline.cluster.ray_data import make_on_ray

    _, work = taught_project(tmp_path, tiny_encoder(tmp_path / "encoder", layers=3))
    source = str(write_rows(tmp_path / "x.csv", 400))
    alone = cut(tmp_path / "alone", [source], work.fields, shard_rows=50)
    finish(alone, work.load)

    told, meeting = Told(), tmp_path / "meeting"
    meeting.mkdir()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node has no tests to import
    job = cut(tmp_path / "out", [source], work.fields, shard_rows=50)
    store = 100 * 1024 * 1024  # bytes
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        cluster.add_node(**options)
        ray.init(address=cluster.address, log_to_driver=False)
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        with job.begun(print):
            make_on_ray(job, Met(**vars(work), meeting=meeting), cluster.address, told)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert {path.name for path in meeting.iterdir()} == nodes
    assert (sorted(told.numbers), told.rows) == (list(range(8)), 400)
    assert contents(job.folder) == contents(alone.folder)
