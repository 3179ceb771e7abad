"""Shards of large files: each made once, whole, the same bytes whoever makes it, and verified before it is believed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import SORTS, Heard, write_task
from sharded import TEACHER, TOPICS, Lengths, Told, contents, finish, rows_of, taught_project, write_rows

from trunkline.atomic import InUse
from trunkline.engine.inputs import Columns, Row, marks, read_rows
from trunkline.errors import ProjectError, StoreError, UsageError
from trunkline.pipeline.crew import make_all
from trunkline.pipeline.foreign import load_logits, logits_file
from trunkline.pipeline.project import Project
from trunkline.pipeline.shards import cut, made_of
from trunkline.pipeline.teach import teacher_work
from trunkline.project.soft import soft_labels
from trunkline.project.tasks import Kind, probabilities


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.one_of(st.text(max_size=8), st.none()), max_size=30),
    every=st.integers(1, 9),
    suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"]),
)
def test_reading_from_a_mark_gives_the_rows_after_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], every: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / f"x{suffix}"
    if suffix == ".parquet":
        table = pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())})
        pyarrow.parquet.write_table(table, path, row_group_size=4)
    elif suffix == ".jsonl":
        lines = ["broken {" if row is None else "" if row == " " else json.dumps({"text": row}) for row in rows]
        path.write_text("\ufeff" + "\n".join(lines))
    else:
        cell = "{}" if suffix == ".tsv" else '"{}"'
        lines = [cell.format((row or "").replace('"', "''").replace("\t", " ")) for row in rows]
        path.write_text("\n".join(["text", *lines]), newline="")
    whole: list[Row] = list(read_rows(path, Columns()))
    count, starts = marks(path, every)
    assert count == len(whole)
    assert [mark.row for mark in starts] == list(range(0, count, every))
    for mark in starts:
        assert list(read_rows(path, Columns(), mark)) == whole[mark.row :]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_shards_hold_the_rows_in_order_and_never_reach_over_a_file(tmp_path: Path, suffix: str) -> None:
    for number, count in enumerate((23, 10)):
        write_rows(tmp_path / "data" / f"{number}{suffix}", count, number)
    job = cut(tmp_path / "out", [str(tmp_path / "data")], {}, shard_rows=10)
    assert [shard.rows for shard in job.shards] == [10, 10, 3, 10]
    assert finish(job, Lengths) == [0, 1, 2, 3]
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"r{n}" for count in (23, 10) for n in range(count)]
    assert all(row["score"] == len(row["text"]) for row in rows)
    pattern = cut(tmp_path / "other", [str(tmp_path / "data" / f"*{suffix}")], {}, shard_rows=10)
    assert finish(pattern, Lengths) == [0, 1, 2, 3]
    assert contents(tmp_path / "other") == contents(tmp_path / "out")


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", 50)
    job, scorer, said = cut(tmp_path / "out", [str(source)], {}, shard_rows=10), Lengths(), list[str]()
    finish(job, lambda: scorer)
    before = contents(job.folder)
    assert finish(job, lambda: scorer) == []
    first, second, third = sorted(job.folder.glob("shard-*"))[:3]
    flipped = bytearray(first.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    first.write_bytes(flipped)
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    (job.folder / ".staging-abc-shard-00004-0000000000000000.parquet").write_bytes(b"half")
    other = cut(tmp_path / "other", [str(source)], {"else": 1}, shard_rows=10)
    finish(other, Lengths)
    [strange] = other.folder.glob("shard-00003-*")
    (job.folder / strange.name).write_bytes(strange.read_bytes())
    assert finish(job, lambda: scorer, said.append) == [0, 1, 2]
    assert sorted(line.partition(" ")[2] for line in said) == [
        "is damaged, and was removed",
        "is damaged, and was removed",
        "is of another job, and was removed",
    ]
    assert contents(job.folder) == before
    assert scorer.rows == 50 + 30
    assert not list(job.folder.glob(".staging-*"))


def test_shards_are_verified_while_other_processes_work_there_too(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", 20)
    job = cut(tmp_path / "out", [str(source)], {}, shard_rows=10)
    finish(job, Lengths)
    damaged = min(job.folder.glob("shard-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    mark = InUse(job.folder)
    assert finish(job, Lengths) == [0]
    mark.close()


def test_another_job_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", 20)
    finish(cut(tmp_path / "out", [str(source)], {"teacher": "a"}, shard_rows=10), Lengths)
    (tmp_path / "out" / "notes.parquet").write_bytes(b"")
    write_rows(source, 20, seed=1)
    with pytest.raises(ProjectError) as caught:
        finish(cut(tmp_path / "out", [str(source)], {"teacher": "b"}, shard_rows=5), Lengths)
    assert [problem.where for problem in caught.value.problems] == [
        "shard_rows",
        "sources[0].sha256",
        "work.teacher",
        "",
    ]
    assert caught.value.problems[2].found == '"a" then, "b" now'
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"mine holds letter\.txt, but no job\.json"):
        finish(cut(tmp_path / "mine", [str(source)], {}), Lengths)


def test_a_source_that_changes_while_shards_are_made_stops_the_job(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", 20)
    job = cut(tmp_path / "out", [str(source)], {}, shard_rows=10)
    write_rows(source, 20, seed=1)
    with pytest.raises(StoreError, match=r"x\.jsonl was changed since the job began"):
        finish(job, Lengths)
    assert contents(job.folder) == {}


def test_ids_are_those_of_the_source_and_a_row_without_one_takes_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c", "d"], "id": [3.0, 2.0, None, 0.0]}), path)
    finish(cut(tmp_path / "out", [str(path)], {}), Lengths)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["3", "2", "row 2", "0"]
    with pytest.raises(ProjectError, match=r'no such column\n.*"key"\n.*name it with --id'):
        cut(tmp_path / "other", [str(path)], {}, columns=Columns(id="key"))


def test_sources_that_cannot_be_read_are_said_all_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", 3)
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "single.jsonl").write_text('{"text": "a"}\n')
    names = ["none.jsonl", "x.jsonl", "x.jsonl", "bad.parquet", "other.csv", "single.jsonl"]
    with pytest.raises(ProjectError) as caught:
        cut(tmp_path / "out", [str(tmp_path / name) for name in names], {}, pairs=True)
    said = [(Path(problem.file).name, problem.message) for problem in caught.value.problems]
    assert [name for name, _ in said] == ["none.jsonl", "x.jsonl", "bad.parquet", "other.csv", "single.jsonl"]
    assert [message for _, message in said][1] == "named twice"
    assert "not a readable parquet file" in said[2][1]
    assert "no column 'text'" in said[3][1]
    assert said[4][1] == "no such column"
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_read_fail_alone(tmp_path: Path, encoder: Path) -> None:
    _, work = taught_project(tmp_path, encoder)
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "play"}\n{"text": "  "}\nbroken\n{"text": "half \\ud83d"}\n{"text": "rain"}\n')
    job = cut(tmp_path / "out", [str(source)], work.fields)
    assert finish(job, work.load) == [0]
    rows = rows_of(tmp_path / "out")
    assert [row["logits"] is None for row in rows] == [False, True, True, True, False]
    assert [row["error"] for row in rows][1] == "text is empty"
    assert "line 3: not valid JSON" in rows[2]["error"]
    assert job.counts() == {"rows": 5, "faults": 3}


@pytest.mark.parametrize("task", SORTS)
def test_a_folder_of_shards_is_a_file_teacher_that_says_what_the_model_says(
    tmp_path: Path, encoder: Path, task: str
) -> None:
    labels = {
        "intent": TOPICS,
        "tone": [*TOPICS, "long"],
        "urgency": ["LABEL_0"],
        "slots": ["O", *(f"{place}-{topic}" for place in "IB" for topic in TOPICS)],
        "same": ["LABEL_0"],
    }[task]
    options = {"problem_type": "multi_label_classification"} if task == "tone" else {}
    root, work = taught_project(tmp_path, encoder, task, labels, tokens=task == "slots", **options)
    job = cut(root / "soft", [str(root / "data" / f"{task}.jsonl")], work.fields, shard_rows=20, pairs=work.pairs)
    if task == "slots":  # whose rows are words in the data, and texts here
        words = [json.loads(line)["tokens"] for line in (root / "data" / "slots.jsonl").read_text().splitlines()]
        lines = "".join(json.dumps({"text": " ".join(one)}) + "\n" for one in words)
        (tmp_path / "texts.jsonl").write_text(lines)
        job = cut(root / "soft", [str(tmp_path / "texts.jsonl")], work.fields, shard_rows=20)
    finish(job, work.load)
    write_task(root, task, **SORTS[task], distill={"teachers": ["file:soft", TEACHER]})
    project = Project.load(root)
    project.check()
    [stage] = [id for id, one in project.graph.stages.items() if one.kind == "teach"]
    workshop = project.train([stage])
    asked = load_logits(project.store.get(project.graph.keys[stage]).folder / logits_file("train"))
    [read] = soft_labels(project.files, task, workshop.data(task))
    kind = Kind(SORTS[task]["kind"])
    for one, other in zip(read, asked, strict=True):
        assert probabilities(kind, one) == pytest.approx(probabilities(kind, other), abs=1e-5)
    shard = min((root / "soft").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ProjectError, match=f"{shard.name}: is damaged"):
        soft_labels(project.files, task, workshop.data(task))


def test_own_models_teach_too_and_what_is_none_is_refused(tmp_path: Path, done: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", 12)
    project = Project.load(done)
    contents_of = {}
    for name in ("release", "full", "tune:1"):
        work = teacher_work(project, "intent", name, threads=1, show=Heard())
        job = cut(tmp_path / name.replace(":", ""), [str(source)], work.fields)
        finish(job, work.load)
        contents_of[name] = [tuple(row["logits"].values()) for row in rows_of(job.folder)]
        assert all(row["error"] is None for row in rows_of(job.folder))
    texts = [row["text"] for row in rows_of(tmp_path / "release")]
    for text, logits in zip(texts, contents_of["release"], strict=True):
        answer = project.bundle().predict([text])[0]["intent"]
        assert answer.label == ("alarm", "music", "weather")[max(range(3), key=logits.__getitem__)]  # type: ignore[union-attr]
    assert len({str(found) for found in contents_of.values()}) == 3
    write_task(done, "intent", **SORTS["intent"], distill={"teachers": ["self", "file:soft/large"]})
    teacher_work(Project.load(done), "intent", "full", threads=1, show=Heard())  # which is to fill that folder
    for name in ("self", "file:soft.jsonl", "tune:7", "tune:1/joint", "nobody"):
        with pytest.raises(UsageError):
            teacher_work(project, "intent", name, threads=1, show=Heard())


CHILD = """
import sys, time
from pathlib import Path
import pyarrow
from trunkline.pipeline.shards import Scored, cut

def score(items, moved):
    with open(sys.argv[3], "a") as log:
        log.write("x")
    time.sleep(0.02)
    return Scored(pyarrow.table({"score": [len(item.text) for item in items]}), {"faults": 0})

job = cut(Path(sys.argv[2]), [sys.argv[1]], {}, shard_rows=5)
with job.begun(print):
    for made in job.make(lambda: score, lambda rows: None):
        pass
"""


def test_killed_at_any_instant_nothing_is_lost_and_nothing_made_twice(tmp_path: Path) -> None:
    """Two processes at a time, killed again and again by a signal that nothing can catch."""
    source, out, log = write_rows(tmp_path / "x.jsonl", 400), tmp_path / "out", tmp_path / "log"
    alone = cut(tmp_path / "alone", [str(source)], {}, shard_rows=5)
    finish(alone, Lengths)
    command = [sys.executable, "-c", CHILD, str(source), str(out), str(log)]
    rng, seen, kills = random.Random(3), dict[str, int](), 0
    for _ in range(4):
        processes = [subprocess.Popen(command) for _ in range(2)]
        wanted = len(seen) + rng.randint(1, 8)
        while len(list(out.glob("shard-*"))) < wanted and all(process.poll() is None for process in processes):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        for process in processes:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        now = {path.name: path.stat().st_ino for path in out.glob("shard-*")}
        assert {name: now.get(name) for name in seen} == seen
        seen = now
    assert kills == 8
    assert 0 < len(seen) < 80
    last = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in last] == [0, 0]
    assert {name: (out / name).stat().st_ino for name in seen} == seen
    assert contents(out) == contents(alone.folder)
    assert 80 <= len(log.read_text()) <= 80 + kills  # all that was ever scored: each kill can cost one shard


def test_the_command_goes_on_after_a_kill_with_the_bytes_of_one_process(tmp_path: Path, encoder: Path) -> None:
    root, work = taught_project(tmp_path, encoder)
    source, out = write_rows(tmp_path / "x.jsonl", 1200), tmp_path / "out"
    alone = cut(tmp_path / "alone", [str(source)], work.fields, shard_rows=100)
    assert len(finish(alone, work.load)) == 12
    command = [sys.executable, "-m", "trunkline", "-C", str(root), "teach", "intent", str(source), "--teacher"]
    command += [TEACHER, "--out", str(out), "--shard-rows", "100", "--processes", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("shard-*")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    job, told = cut(out, [str(source)], work.fields, shard_rows=100), Told()
    with job.begun(print):
        left = [shard.number for shard in job.missing()]
        make_all(job, work, 1, told)
        while job.missing():  # a process of the one that was killed may still end its shard
            time.sleep(0.05)
    assert set(told.numbers) <= set(left)
    assert contents(out) == contents(alone.folder)


def test_a_shard_says_what_it_was_made_of(tmp_path: Path) -> None:
    job = cut(tmp_path / "out", [str(write_rows(tmp_path / "x.jsonl", 5))], {})
    finish(job, Lengths)
    [path] = job.folder.glob("shard-*")
    about = made_of(pyarrow.parquet.read_schema(path))
    assert about == {"job": job.key, "shard": 0, "counts": {"faults": 0}}
