"""Sets of the hub: the commit is found once and belongs to their name; what the cache gives without the hub.

The hub is a small server of this process. Tests that load a set need the extra [hub].
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import ProjectError
from trunkline.project.config import TaskSettings
from trunkline.project.data import hub_sets, pinned, read_task, reads_pairs
from trunkline.project.hub import HubSet

ONE, TWO = "1" * 40, "2" * 40
NAMES = [
    "hub:owner/name#train",
    "hub:owner/name:config#train[:10%]",
    "hub:owner/name@refs/convert/parquet#test",
    f"hub:owner/name:config@{ONE}#train",
]


def task(train: str, kind: str = "classification", **data: Any) -> TaskSettings:
    return TaskSettings.model_validate({"kind": kind, "data": {"train": train, **data}})


@dataclass
class Hub:
    """Commits by revision, and how often each was asked for."""

    commits: dict[str, str] = field(default_factory=lambda: {"main": ONE})
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one set, owner/messages."""
    constants = pytest.importorskip("huggingface_hub.constants")
    found = Hub()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, revision = self.path.partition("?")[0].partition("/revision/")
            commit = None
            if path == "/api/datasets/owner/messages":
                found.asked.append(revision or "main")
                commit = found.commits.get(revision or "main")
            body = json.dumps({"id": "owner/messages", "sha": commit} if commit else {"error": "not found"}).encode()
            self.send_response(200 if commit else 404)
            if not commit:
                self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield found
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_and_written_alike(name: str) -> None:
    assert str(HubSet.parse(name)) == name
    assert task(name).data.train == name


@pytest.mark.parametrize("name", ["hub:owner/name@#train", "hub:owner/name@a b#train", "hub:owner/name@main"])
def test_a_revision_without_a_name_is_no_hub_name(name: str) -> None:
    with pytest.raises(ValueError, match="hub name"):
        task(name)


def test_a_set_is_read_at_the_commit_that_the_hub_gives_now(hub: Hub) -> None:
    settings = task("hub:owner/messages:small#train", test="hub:owner/messages:small#test", dev="dev.jsonl")
    sets = hub_sets("tone", settings, {})
    assert sets == {
        "train": f"hub:owner/messages:small@{ONE}#train",
        "test": f"hub:owner/messages:small@{ONE}#test",
    }
    assert hub.asked == ["main"], "asked once for both splits"
    hub.commits["main"] = TWO
    after = hub_sets("tone", settings, {})
    assert all(TWO in name for name in after.values())
    data = pinned(settings, after).data
    assert (data.train, data.test, data.dev) == (after["train"], after["test"], "dev.jsonl")


def test_a_branch_or_tag_is_looked_up_and_a_commit_is_taken_as_it_stands(hub: Hub) -> None:
    hub.commits["v1.0"] = TWO
    assert hub_sets("tone", task("hub:owner/messages@v1.0#train"), {}) == {"train": f"hub:owner/messages@{TWO}#train"}
    hub.asked.clear()
    fixed = f"hub:owner/elsewhere@{ONE}#train"
    assert hub_sets("tone", task(fixed), {}) == {"train": fixed}
    assert hub.asked == []


def test_a_revision_that_the_hub_does_not_know_is_one_problem(hub: Hub) -> None:
    with pytest.raises(ProjectError) as caught:
        hub_sets("tone", task("hub:owner/messages@v9#train"), {})
    [problem] = caught.value.problems
    assert (problem.file, problem.where) == ("tasks/tone.toml", "data.train")
    assert "hub:owner/messages@v9#train" in str(problem.found)


def test_without_the_hub_a_branch_is_refused_since_the_cache_knows_commits_only() -> None:
    with pytest.raises(ProjectError, match=r"(?s)@main.*only a commit of 40 digits"):
        hub_sets("tone", task("hub:owner/messages@main#train"), {})


# A folder of this shape is what the library takes for a set of the hub when it is offline.
@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_set(tmp_path, 40)
    return "hub:owner/messages#train"


def write_set(root: Path, count: int, **columns: list[str]) -> None:
    import datasets

    folder = root / "owner" / "messages"
    folder.mkdir(parents=True, exist_ok=True)
    labels = datasets.ClassLabel(names=["bad", "good"])
    rows = {"text": [f"message {i}" for i in range(count)], "label": [-1 if i == 7 else i % 2 for i in range(count)]}
    kinds = {"text": datasets.Value("string"), "label": labels} | dict.fromkeys(columns, datasets.Value("string"))
    made = datasets.Dataset.from_dict({**rows, **columns}, features=datasets.Features(kinds))
    made.to_parquet(folder / "train-00000-of-00001.parquet")


def test_a_set_gives_named_labels(local: str, tmp_path: Path) -> None:
    data = read_task(tmp_path, "tone", task(local))
    assert data.labels == ("bad", "good")
    assert f"{local}: 1 row without a label left out" in data.notes
    found = dict(zip(data.fit.texts, data.fit.targets, strict=True))
    assert all(target == ("good" if int(text.split()[1]) % 2 else "bad") for text, target in found.items())


def test_a_set_that_cannot_be_loaded_is_one_problem(local: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        read_task(tmp_path, "tone", task(local.replace("#train", "#nowhere")))
    assert [(problem.file, problem.where) for problem in caught.value.problems] == [("tasks/tone.toml", "data.train")]
    assert "nowhere" in str(caught.value)


def test_columns_are_known_without_loading_the_set(local: str, tmp_path: Path) -> None:
    assert not reads_pairs(tmp_path, task(local))
    write_set(tmp_path, 40, text_pair=["other"] * 40)
    assert reads_pairs(tmp_path, task(local))
    assert reads_pairs(tmp_path, task(f"{local}[:10%]"))
    assert list((tmp_path / "cache").rglob("*.arrow")) == []


def test_a_set_that_changed_under_its_name_is_another_one(local: str, tmp_path: Path) -> None:
    before = hub_sets("tone", task(local), {})
    assert hub_sets("tone", task(local), {}) == before
    assert len(read_task(tmp_path, "tone", pinned(task(local), before)).fit) > 30
    write_set(tmp_path, 60)
    assert hub_sets("tone", task(local), {}) != before
    with pytest.raises(ProjectError, match="cache holds"):
        read_task(tmp_path, "tone", pinned(task(local), before))
