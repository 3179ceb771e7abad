"""Classifiers that were fine-tuned elsewhere: where their files are, what they are, and what their outputs mean.

Knows config.json and file hashes only, as `source` does for trunks: no torch, no transformers. Running one is the
matter of `classifiers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import EncoderError
from trunkline.model.source import CONFIG, FAMILIES, Shape, download, fingerprint, folder_of, read_shape

CLASSIFIERS = (*FAMILIES, "albert", "camembert")
"""Families that a foreign classifier may be of."""
_TASKS = {"ForSequenceClassification": False, "ForTokenClassification": True}


@dataclass(frozen=True)
class ForeignClassifier:
    """A fine-tuned classifier on disk: its folder, the sha256 over its files, its shape, and the names of its outputs.

    `per_token` says whether it scores tokens or the whole text; `problem` is what config.json calls its problem type.
    """

    path: Path
    fingerprint: str
    shape: Shape
    outputs: tuple[str, ...]
    per_token: bool
    problem: str | None


def find_classifier(
    name: str, base: Path, cache: Path | None = None, *, hub: bool = False, revision: str | None = None
) -> ForeignClassifier:
    """The classifier in the folder `name`, relative to `base`, or of this name on the hub; `cache` as for `resolve`.

    Raises EncoderError where it cannot be had, is none, or is of a family that is not known here.
    """
    if hub:
        try:
            folder = download(name, revision, families=CLASSIFIERS)
        except OSError as error:
            raise EncoderError(f"'{name}' could not be fetched from the hub ({error})") from error
    else:
        found = folder_of(name, base)
        if found is None:
            raise EncoderError(f"no such folder: '{name}' (looked in {base})")
        folder = found
    shape = read_shape(folder, families=CLASSIFIERS)
    return ForeignClassifier(
        folder,
        fingerprint(folder, cache),
        shape,
        _outputs(folder, shape.raw),
        _per_token(folder, shape.raw),
        _problem(folder, shape.raw),
    )


def _per_token(folder: Path, raw: dict[str, Any]) -> bool:
    names = raw.get("architectures")
    for name in names if isinstance(names, list) else []:
        for ending, per_token in _TASKS.items():
            if str(name).endswith(ending):
                return per_token
    raise EncoderError(
        f"{folder / CONFIG}: architectures is {names!r}, which is no classifier of texts ({' or '.join(_TASKS)})"
    )


def _outputs(folder: Path, raw: dict[str, Any]) -> tuple[str, ...]:
    """Names by output; transformers leaves `id2label` out where there are two that nobody named."""
    named = raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    try:
        by_place = {int(place): str(name) for place, name in named.items()}
    except (AttributeError, TypeError, ValueError):
        by_place = {}
    if not by_place or sorted(by_place) != list(range(len(by_place))):
        raise EncoderError(f"{folder / CONFIG}: id2label must name outputs 0, 1, …; found {named!r}")
    return tuple(by_place[place] for place in range(len(by_place)))


def _problem(folder: Path, raw: dict[str, Any]) -> str | None:
    problem = raw.get("problem_type")
    if problem is not None and not isinstance(problem, str):
        raise EncoderError(f"{folder / CONFIG}: problem_type must be a name, found {problem!r}")
    return problem
