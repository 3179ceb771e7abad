"""Public data sets as they are: every one is read, checked and split."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trunkline.errors import ProjectError
from trunkline.project.config import SPLITS, TaskSettings
from trunkline.project.data import TaskData, read_task
from trunkline.project.metrics import evaluate
from trunkline.project.tasks import METRICS, Kind, output_width

ROOT = Path(os.environ.get("TRUNKLINE_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real data at {ROOT}; set TRUNKLINE_DATA")

SETS: dict[str, dict[str, Any]] = {
    "glue/cola": {"metric": "matthews"},
    "glue/sst2": {"data": {"max_train_rows": 10_000}},
    "glue/mrpc": {"metric": "accuracy_f1"},
    "glue/stsb": {"kind": "regression"},
    "glue/rte": {},
    "glue/qnli": {},
    "glue/qqp": {"metric": "accuracy_f1"},
    "glue/mnli": {},
    "fastbert/agnews": {},
    "fastbert/dbpedia": {},
    "fastbert/yelp_polarity": {},
    "fastbert/yelp_full": {},
    "fastbert/zh_book_review": {},
    "fastbert/zh_chnsenticorp": {},
    "utterance/snips": {},
    "utterance/snips tags": {"kind": "tagging"},
    "utterance/clinc150": {},
    "utterance/cais_zh tags": {"kind": "tagging"},
    "utterance/goemotions": {"kind": "multilabel"},
    "qa/wikiqa": {"kind": "relevance", "metric": "map"},
    "qa/trecqa": {"kind": "relevance", "metric": "mrr"},
    "qa/boolq": {"metric": "f1"},
    "qa/snli": {},
}


def settings_of(name: str, **given: Any) -> TaskSettings:
    folder = name.split()[0]
    if not (ROOT / folder).is_dir():
        pytest.skip(f"no {folder} in {ROOT}")
    splits = {split: f"{folder}/{split}.jsonl" for split in SPLITS if (ROOT / folder / f"{split}.jsonl").exists()}
    return TaskSettings.model_validate({"kind": "classification", **given, "data": {**splits, **given.get("data", {})}})


def keys(data: TaskData, rows: Any) -> set[str]:
    return set(data.fit.take(rows).keys())


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_and_split_honestly(name: str) -> None:
    settings = settings_of(name, **SETS[name])
    data = read_task(ROOT, "any", settings)
    judged = set().union(*(rows.keys() for rows in data.reported.values()))
    train, valid = keys(data, data.train), keys(data, data.valid)
    assert not train & valid
    assert not (train | valid) & judged
    assert 0.08 < len(data.valid) / len(data.train) < 0.13 or settings.data.valid is not None
    main = data.reported[data.main_split]
    shape = (output_width(settings.kind, data.labels),)
    logits = [np.zeros((len(tags), *shape)) for tags in main.targets] if settings.kind is Kind.TAGGING else []
    found = evaluate(settings.kind, data.labels, data.positive, main, logits or np.zeros((len(main), *shape)))
    assert settings.primary_metric in found
    assert set(found) >= set(METRICS[settings.kind]) - ({"f1", "accuracy_f1"} if data.positive is None else set())


def test_tokens_of_snips_stand_in_their_texts() -> None:
    data = read_task(ROOT, "slots", settings_of("utterance/snips", kind="tagging"))
    assert data.fit.words is not None
    for text, words, tags in zip(data.fit.texts, data.fit.words, data.fit.targets, strict=True):
        assert " ".join(text[start:end] for start, end in words) == text
        assert len(words) == len(tags)


@pytest.mark.parametrize("name", ["utterance/atis", "utterance/atis tags", "utterance/cais_zh"])
def test_a_set_whose_test_has_labels_that_train_lacks_names_the_rows_and_is_read_once_they_are_listed(
    name: str,
) -> None:
    kind = "tagging" if name.endswith("tags") else "classification"
    settings = settings_of(name, kind=kind)
    with pytest.raises(ProjectError) as caught:
        read_task(ROOT, "any", settings)
    assert {problem.file for problem in caught.value.problems} <= {settings.data.dev, settings.data.test}
    assert all(problem.where.startswith("line") for problem in caught.value.problems)
    column = "tags" if kind == "tagging" else "label"
    listed = every_label(settings, column)
    data = read_task(ROOT, "any", settings_of(name, kind=kind, labels=listed))
    assert list(data.labels) == listed
    assert any("no row has" in note for note in data.notes)


def every_label(settings: TaskSettings, column: str) -> list[str]:
    found: set[str] = set()
    for split in SPLITS:
        file = getattr(settings.data, split)
        for line in (ROOT / file).read_text(encoding="utf-8").split("\n") if file else ():
            if line:
                cell = json.loads(line)[column]
                found.update(cell if isinstance(cell, list) else [cell])
    return sorted(found)


def test_a_set_of_one_label_is_no_task_by_itself() -> None:
    with pytest.raises(ProjectError, match="only one label"):
        read_task(ROOT, "oos", settings_of("utterance/clinc150_oos"))
