"""Adapt a copy of the encoder to several tasks at once, and leave it in the store as `encoder/`.

Knows what each task may bring to it: no text that it, or another that is judged, is judged on. Imports torch when it
runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.errors import ProjectError, TrunklineError
from trunkline.pipeline.execute import ENCODER, Report, Workshop, went
from trunkline.pipeline.store import Entry
from trunkline.project.files import PROJECT_FILE
from trunkline.project.readers import read_texts
from trunkline.project.rows import fold

if TYPE_CHECKING:
    from trunkline.model.tokens import TokenRow
    from trunkline.training.adapt import Part

MASKED_TOKENS = 128
"""Unlabelled texts are cut to so many tokens, as BERT's own were for most of its training."""


def adapt(shop: Workshop, key: str, fields: dict[str, Any], report: Report) -> Entry:
    """Adapt a copy of the encoder to the tasks of `fields`, and publish it; what they need is in the store."""
    from trunkline.training.adapt import adapt as train
    from trunkline.training.candidates import schedule_of
    from trunkline.training.loop import precision_of

    settings = shop.files.settings
    asked = settings.adapt

    def make(artifacts: Path, work: Path) -> dict[str, Any]:
        started = time.monotonic()
        parts = _parts(shop, fields["tasks"], fields.get("judged", {}))
        schedule = schedule_of(
            asked,
            asked.learning_rate,
            seed=fields["seed"],
            precision=precision_of(settings.precision, shop.device),
            device=shop.device,
        )
        try:
            adapted = train(
                parts,
                fields["depths"],
                schedule,
                work / "checkpoint.pt",
                report,
                sampling=asked.sampling,
                temperature=asked.temperature,
                gold_weight=asked.gold_weight,
                layers=[layer - 1 for layer in fields["layers"]] if "layers" in fields else None,
                masked=asked.masked,
                texts=_unlabelled(shop, asked.unlabelled, [*parts, *fields.get("judged", ())]),
            )
        except FloatingPointError as error:
            raise TrunklineError(f"adapt: {error}; lower adapt.learning_rate in project.toml") from error
        adapted.encoder.save(artifacts / ENCODER)
        return {
            "valid": adapted.valid,
            **went(adapted.outcome),
            "seconds": round(time.monotonic() - started, 1),
        }

    # What a process that was killed since had finished is not trained again.
    return shop.store.get(key) if key in shop.store else shop.store.put(key, fields, make)


def _unlabelled(shop: Workshop, files: Sequence[str], tasks: Iterable[str]) -> list[TokenRow]:
    """The texts of these data files as the encoder reads them, but for those that one of `tasks` is judged on.

    Raises ProjectError.
    """
    found = [read_texts(shop.files.root, file, (PROJECT_FILE, "adapt.unlabelled")) for file in files]
    if problems := [problem for _, wrong in found for problem in wrong]:
        raise ProjectError(problems)
    texts = list(dict.fromkeys(text for read, _ in found for text in read))
    rows = [one for task in tasks for one in shop.data(task).judged] if texts else []
    judged = {fold(text) for one in rows for text in (*one.texts, *(one.pairs or ()))}
    kept = [text for text in texts if fold(text) not in judged]
    if len(kept) < len(texts):
        shop.say(f"{len(texts) - len(kept):,} unlabelled texts left out, since tasks are judged on them")
    encoder = shop.trunk.encoder
    return encoder.tokenize(kept, max_tokens=min(MASKED_TOKENS, encoder.reader.max_positions)) if kept else []


def _parts(shop: Workshop, given: dict[str, Any], judged: Iterable[str]) -> dict[str, Part]:
    """What each task brings to an adaptation: no text that it, or one of the tasks `judged`, is judged on."""
    from trunkline.model.branch import Reading
    from trunkline.training.adapt import Part, apart

    materials = {task: shop.material(task) for task in given}
    rows = apart({task: shop.data(task) for task in (*given, *judged)}, given)
    for task, material in materials.items():
        shared = len(material.data.train) - len(rows[task])
        if shared:
            shop.say(f"{task}: {shared:,} train rows left out, since tasks are judged on their texts")
        if not len(rows[task]):
            raise TrunklineError(f"{task} has no train row left to adapt the trunk to; leave it out: --without {task}")
    return {
        task: Part(
            materials[task],
            Reading(one["reading"]),
            rows[task],
            None if one["teacher"] is None else shop.taught(one["teacher"]),
        )
        for task, one in given.items()
    }
