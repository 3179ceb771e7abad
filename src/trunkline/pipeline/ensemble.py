"""How good a student's teachers are together, on `valid`: from logits of each, kept in the store; nothing is trained.

Knows finished stages and modes of teaching; nothing of what a report shows. torch is imported when teachers are asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.pipeline.execute import VALID_LOGITS, Workshop
from trunkline.pipeline.foreign import load_logits
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.store import key_of
from trunkline.pipeline.ways import teaching_of
from trunkline.project.metrics import evaluate
from trunkline.project.teachers import Mode

ENSEMBLE_VERSION = 1


def ensemble(shop: Workshop, student: Stage) -> dict[str, float] | None:
    """The metrics on `valid` of what the teachers of a finished student say together.

    None where that cannot be told: for soft labels in a file, for a foreign teacher whose answers on `valid` an early
    version did not keep, and in the mode `best`, which looks at the labels.
    """
    if Mode(student.fields.get("mode", Mode.MEAN)) is Mode.BEST:
        return None
    ids = [teacher.stage for teacher in student.teachers if teacher.stage is not None]
    if len(ids) < len(student.teachers) or not all(_kept(shop, id) for id in ids):
        return None
    teaching = teaching_of(student.fields, student.teachers)
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
        said = together(kind, [_logits(shop, id) for id in ids], teaching)
        return {"metrics": evaluate(kind, data.labels, data.positive, data.fit.take(data.valid), said)}

    key = key_of(fields)
    entry = shop.store.get(key) if key in shop.store else shop.store.put(key, fields, ask)
    found: dict[str, float] = entry.result["metrics"]
    return found


def _kept(shop: Workshop, id: str) -> bool:
    """Whether what a teacher says of `valid` is there, or can be had from its model."""
    return shop.graph.stages[id].kind is not StageKind.TEACH or _file(shop, id).is_file()


def _file(shop: Workshop, id: str) -> Path:
    return shop.store.stages / shop.graph.keys[id] / VALID_LOGITS


def _logits(shop: Workshop, id: str) -> Any:
    if shop.graph.stages[id].kind is StageKind.TEACH:
        return load_logits(_file(shop, id))
    return shop.taught(id, held_out=True)
