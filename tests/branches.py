"""Branches with random weights over tiny encoders, for tests of what happens to branches after training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_encoder

from trunkline.engine import Input
from trunkline.model.branch import Branch, BranchSpec, Reading, new_branch, save_branch
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.model.source import Source, resolve
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import DEFAULT_METRIC, Kind

LABELS: dict[str, tuple[str, ...]] = {
    "classification": ("alarm", "music", "weather"),
    "multilabel": ("angry", "happy", "polite", "sad"),
    "regression": (),
    "tagging": ("O", "B-time", "I-time"),
    "relevance": ("no", "yes"),
}

# Every kind and every reading, forks from 0 to the depth, with and without layers of their own, under two limits.
ALL_SORTS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "classification", "fork": 2, "layers": 1},
    "tone": {"kind": "multilabel", "fork": 1, "layers": 2, "pooling": "mean"},
    "urgency": {"kind": "regression", "fork": 3, "layers": 1, "mean": 3.0, "std": 2.0},
    "slots": {"kind": "tagging", "fork": 2, "layers": 2},
    "short": {"kind": "classification", "fork": 0, "layers": 4, "max_tokens": 6},
    "probe": {"kind": "classification", "fork": 4, "layers": 0, "pooling": "mean"},
    "concat": {"kind": "classification", "fork": 2, "layers": 1, "pooling": "concat"},
    "same": {"kind": "relevance", "reading": "separate", "fork": 2, "layers": 1, "pooling": "pair"},
    "follows": {"kind": "classification", "reading": "joint", "fork": 3, "layers": 1},
    "few": {"kind": "classification", "fork": 2, "layers": 2, "pooling": "latents", "latents": 3},
    "alike": {"kind": "relevance", "reading": "separate", "fork": 1, "layers": 2, "pooling": "latents", "latents": 5},
    "near": {"kind": "regression", "reading": "separate", "fork": 1, "layers": 1, "pooling": "cls", "max_tokens": 8},
}

INPUTS = [
    Input("wake me at seven", "set an alarm for the morning"),
    Input("play some music", "play a song by the band that my daughter likes, and not too loud please"),
    Input("Will it rain today, or should we go out for dinner in the city?"),
    Input("no", "yes"),
    Input("please move my table to eight", "play some music"),
    Input("play some music", "it is a very nice day"),
]


@dataclass(frozen=True)
class Made:
    """What training leaves behind, and a bundle of all of it."""

    source: Source
    trunk: Trunk
    files: dict[str, Path]
    bundle: Path

    def some(self, *tasks: str) -> dict[str, Path]:
        """The branch files of these tasks."""
        return {task: self.files[task] for task in tasks}


def tiny_source(folder: Path, family: str = "bert", **options: Any) -> Source:
    """A tiny encoder in `folder`, resolved."""
    return resolve(str(tiny_encoder(folder, family, **options)), None, folder.parent)


def load_trunk(source: Source) -> Trunk:
    """The trunk of a resolved encoder."""
    return Trunk(Encoder.load(source.path), source.fingerprint)


def random_branch(trunk: Trunk, task: str, *, seed: int = 0, **fields: Any) -> Branch:
    """A branch whose every weight is random; `fields` are those of its spec, with defaults that fit its kind."""
    kind = Kind(fields.pop("kind", "classification"))
    reading = Reading(fields.pop("reading", "single"))
    usual = Pooling.TOKENS if kind is Kind.TAGGING else Pooling.PAIR if reading is Reading.SEPARATE else Pooling.CLS
    labels = LABELS[kind]
    defaults = {"fork": 2, "layers": 1, "max_tokens": 64, "metric": DEFAULT_METRIC[kind], "pooling": usual}
    spec = BranchSpec.model_validate(
        {
            **defaults,
            **fields,
            "task": task,
            "kind": kind,
            "reading": reading,
            "labels": labels,
            "positive": "yes" if kind is Kind.RELEVANCE else None,
            "width": trunk.width,
            "outputs": len(labels) or 1,
            "trunk": trunk.fingerprint,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{task} {seed}".encode()))
        branch = new_branch(spec, trunk.encoder)
        for parameter in branch.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        for weights in branch.scopes.buffers():
            weights.add_(torch.randn_like(weights), alpha=0.2)
    return branch.eval()


def branch_files(folder: Path, trunk: Trunk, sorts: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """One file per task with a random branch of the sort given; the same task and sort always give the same bytes."""
    files = {}
    for task, sort in sorts.items():
        branch = random_branch(trunk, task, **sort)
        name = f"{task}-{zlib.crc32(repr(sorted(sort.items())).encode()):08x}.safetensors"
        files[task] = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if not files[task].exists():
            save_branch(branch, files[task])
    return files
