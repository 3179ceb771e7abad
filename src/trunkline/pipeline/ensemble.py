"""How good a student's teachers are together: from logits of each, kept in the store; nothing is trained.

Knows finished stages and modes of teaching; nothing of what a report shows. torch is imported when teachers are asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.pipeline.execute import Workshop
from trunkline.pipeline.foreign import VALID, load_logits, logits_file
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.store import key_of
from trunkline.pipeline.ways import teaching_of
from trunkline.project.metrics import evaluate
from trunkline.project.teachers import Mode

ENSEMBLE_VERSION = 2


def ensemble(shop: Workshop, student: Stage) -> dict[str, dict[str, float]]:
    """The metrics, on `valid` and on the reported split, of what the teachers of a finished student say together.

    None are told for soft labels in a file, nor in the mode `best`, which looks at the labels.
    """
    if Mode(student.fields.get("mode", Mode.MEAN)) is Mode.BEST:
        return {}
    ids = [teacher.stage for teacher in student.teachers if teacher.stage is not None]
    if len(ids) < len(student.teachers):
        return {}
    teaching = teaching_of(student.fields, [teacher.called for teacher in student.teachers])
    fields = {
        "ensemble": ENSEMBLE_VERSION,
        "teachers": [shop.graph.keys[id] for id in ids],
        "mode": teaching.mode.value,
        "temperature": teaching.temperature,
        "weights": list(teaching.weights),
    }

    def ask(_artifacts: Path, _work: Path) -> dict[str, Any]:
        from trunkline.training.teaching import together

        data, kind = shop.data(student.task), shop.files.tasks[student.task].kind
        splits = {VALID: data.fit.take(data.valid), data.main_split: data.reported[data.main_split]}
        metrics = {}
        for split, rows in splits.items():
            said = together(kind, [_logits(shop, id, split) for id in ids], teaching)
            metrics[split] = evaluate(kind, data.labels, data.positive, rows, said)
        return {"metrics": metrics}

    key = key_of(fields)
    entry = shop.store.get(key) if key in shop.store else shop.store.put(key, fields, ask)
    found: dict[str, dict[str, float]] = entry.result["metrics"]
    return found


def _logits(shop: Workshop, id: str, split: str) -> Any:
    if shop.graph.stages[id].kind is StageKind.TEACH:
        return load_logits(shop.store.stages / shop.graph.keys[id] / logits_file(split))
    return shop.taught(id, split)
