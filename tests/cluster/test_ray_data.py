"""Shards made on a local Ray cluster of two nodes: the bytes of a single process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from foreign import tiny_classifier
from projects import SORTS, Heard, write_project
from tiny import tiny_encoder

from trunkline.pipeline.project import Project
from trunkline.pipeline.shards import cut
from trunkline.pipeline.teach import teacher_work

WORDS = ["play", "some", "music", "please", "now", "rain", "weather", "alarm", "me", "at", "night", "song"]

# Ray warns of options of its own, which it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


class Told(Heard):
    """Hears of shards."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.numbers: list[int] = []

    def moved(self, rows: int) -> None:
        self.rows += rows

    def made(self, made: Any) -> None:
        self.numbers.append(made.number)


def test_two_nodes_make_the_bytes_of_a_single_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="Ray is an extra", exc_type=ImportError)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # so that no token is left in the home folder
    import ray
    from ray.cluster_utils import Cluster

    from trunkline.cluster.ray_data import make_on_ray

    tiny_classifier(tmp_path / "models" / "big", ["weather", "alarm", "music"])
    encoder = tiny_encoder(tmp_path / "encoder", layers=3)
    root = write_project(tmp_path / "project", {"intent": SORTS["intent"]}, encoder=encoder)
    rng = random.Random(0)
    source = tmp_path / "x.csv"
    source.write_text("text\n" + "".join(f"{' '.join(rng.choices(WORDS, k=5))}\n" for _ in range(400)))
    work = teacher_work(Project.load(root), "intent", "path:../models/big", threads=1, show=Heard())
    alone = cut(tmp_path / "alone", [str(source)], work.fields, shard_rows=50)
    with alone.begun(print):
        list(alone.make(work.load, lambda rows: None))

    told = Told()
    job = cut(tmp_path / "out", [str(source)], work.fields, shard_rows=50)
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
    files = {path.name: path.read_bytes() for path in alone.folder.glob("shard-*")}
    assert {path.name: path.read_bytes() for path in job.folder.glob("shard-*")} == files
