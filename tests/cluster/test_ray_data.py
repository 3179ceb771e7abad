"""Shards made on a local Ray cluster of two nodes: the bytes of a single process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sharded import Told, contents, finish, taught_project, write_rows
from tiny import tiny_encoder

from trunkline.pipeline.shards import cut

# Ray warns of options of its own, which it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


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

    told = Told()
    job = cut(tmp_path / "out", [source], work.fields, shard_rows=50)
    store = 100 * 1024 * 1024  # bytes
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        cluster.add_node(**options)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        with job.begun(print):
            make_on_ray(job, work, cluster.address, told)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (sorted(told.numbers), told.rows) == (list(range(8)), 400)
    assert contents(job.folder) == contents(alone.folder)
