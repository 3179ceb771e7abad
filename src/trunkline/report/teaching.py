"""Who taught a task's students, as typed values of the report's data.

This module knows nothing about HTML, SVG or the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trunkline.report.values import mapping, number, text, whole


@dataclass(frozen=True)
class Teacher:
    """One teacher: its metric on `valid` and on the reported split, and the time in ms of its whole model, each None
    where it is not known.
    """

    name: str
    valid: float | None
    reported: float | None
    ms: float | None


@dataclass(frozen=True)
class Change:
    """How much better on `valid` than the students of all teachers, over so many settings alike; `spread` is the
    standard deviation over seeds, None for one.
    """

    mean: float
    spread: float | None
    settings: int


@dataclass(frozen=True)
class Students:
    """The best students of a group of teachers, over seeds; `ms` is the time from the embeddings to their head."""

    teachers: tuple[str, ...]
    fork: int
    layers: int
    latents: int
    reading: str
    valid: float | None
    reported: float | None
    ms: float | None
    change: Change | None


@dataclass(frozen=True)
class Teaching:
    """The teachers of the best student of `everyone`, what they say together on `valid` and on the reported split, None
    where that is not known, and the students of each group that taught.
    """

    teachers: tuple[Teacher, ...]
    everyone: tuple[str, ...]
    ensemble: float | None
    ensemble_reported: float | None
    students: tuple[Students, ...]

    @property
    def ensemble_ms(self) -> float | None:
        """The time in ms of all of `everyone`, one after the other; None where that of one is not known."""
        of = {one.name: one.ms for one in self.teachers}
        times = [ms for name in self.everyone if (ms := of.get(name)) is not None]
        return sum(times) if times and len(times) == len(self.everyone) else None

    @property
    def left_out(self) -> dict[str, Change]:
        """What it changes to leave a teacher out, by teacher, where that was tried and there were several."""
        found = {}
        for one in self.students:
            missing = set(self.everyone) - set(one.teachers)
            fewer = set(one.teachers) < set(self.everyone)
            if fewer and len(missing) == 1 and one.teachers and one.change is not None:
                found[missing.pop()] = one.change
        return found


def read_teaching(data: Mapping[str, Any]) -> Teaching | None:
    """The report's data on teachers, typed; None where there are none to compare."""
    if not data:
        return None
    known = data.get("ensemble")
    ensemble = {"valid": known} if isinstance(known, float) else mapping(known)  # a number in reports of before
    return Teaching(
        teachers=tuple(_teacher(mapping(one)) for one in data.get("teachers") or ()),
        everyone=tuple(text(name) for name in data.get("all") or ()),
        ensemble=number(ensemble.get("valid")),
        ensemble_reported=number(ensemble.get("reported")),
        students=tuple(_students(mapping(one)) for one in data.get("students") or ()),
    )


def _teacher(data: Mapping[str, Any]) -> Teacher:
    figures = {name: number(data.get(name)) for name in ("valid", "reported", "ms")}
    return Teacher(name=text(data.get("teacher")), **figures)


def _students(data: Mapping[str, Any]) -> Students:
    return Students(
        teachers=tuple(text(name) for name in data.get("teachers") or ()),
        fork=whole(data.get("fork")) or 0,
        layers=whole(data.get("layers")) or 0,
        latents=whole(data.get("latents")) or 0,
        reading=text(data.get("reading")) or "single",
        valid=number(data.get("valid")),
        reported=number(data.get("reported")),
        ms=number(data.get("ms")),
        change=_change(mapping(data.get("change"))),
    )


def _change(data: Mapping[str, Any]) -> Change | None:
    mean = number(data.get("mean"))
    return None if mean is None else Change(mean, number(data.get("spread")), whole(data.get("settings")) or 1)
