"""What the parts of a merged model cost on this machine: measured once per set of shapes, kept until `forget`.

Knows shapes and times. Which candidates have them, and what is made of it, is `assemble`'s matter.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trunkline.atomic import remove_folder
from trunkline.model.source import Source
from trunkline.pipeline.select import READS, TrunkCost
from trunkline.pipeline.store import Store, key_of
from trunkline.project.config import CostSettings

COST_VERSION = 1

BranchShape = tuple[str, str, int]
"""(reading, pooling, own layers): all of a branch that time depends on."""


@dataclass(frozen=True)
class Measured:
    """Milliseconds on the reference request; the trunk to each depth, and every branch apart from it."""

    trunk: TrunkCost
    branch: Mapping[BranchShape, float]

    def full(self, reading: str, pooling: str, depth: int) -> float:
        """One separate full model of `depth` layers."""
        return sum(self.trunk.ms[slot][depth] for slot in READS[reading]) + self.branch[reading, pooling, 0]


def machine() -> dict[str, Any]:
    """What a measured time depends on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    threads = os.environ.get("OMP_NUM_THREADS")
    limited = {"threads": int(threads)} if threads and threads.isdigit() else {}
    return {"cpu": name, "cores": len(usable(0)) if usable else os.cpu_count(), **limited, "torch": version("torch")}


def shape_of(branch: Mapping[str, Any]) -> BranchShape:
    """The shape of a finished stage's branch."""
    return branch["reading"], branch["pooling"], branch["layers"]


def measure(
    source: Source, cost: CostSettings, store: Store, shapes: Iterable[BranchShape], say: Callable[[str], None]
) -> Measured:
    """Times of these shapes over this encoder, all in one run; from the store where they were measured before."""
    names = {"/".join(map(str, shape)): shape for shape in sorted(set(shapes))}
    fields = {
        "machine": machine(),
        "encoder": source.fingerprint,
        "cost": cost.model_dump(mode="json"),
        "shapes": list(names),
    }
    key = key_of(["cost", COST_VERSION, fields])
    if key not in store:
        say(f"measuring {len(names)} shapes at batch {cost.batch} x {cost.tokens} tokens on the {cost.engine} engine")
        store.put(key, fields, lambda _artifacts, _work: _measure(source, cost, names))
    result = store.get(key).result
    return Measured(TrunkCost(result["trunk"]), {shape: result["branch"][name] for name, shape in names.items()})


def forget(store: Store) -> None:
    """Drop every time that was measured on this machine, so that what is asked for next is measured again."""
    here = machine()
    for folder in sorted(store.stages.iterdir()):
        if store.get(folder.name).fields.get("machine") == here:
            remove_folder(folder)


def _measure(source: Source, cost: CostSettings, names: Mapping[str, BranchShape]) -> dict[str, Any]:
    from trunkline.engine import timing
    from trunkline.model.encoders import Encoder

    encoder = Encoder.load(source.path)
    # One fork serves for all: layers of an encoder cost alike wherever they stand.
    timed = {
        name: timing.Shape(encoder.depth - layers, layers, reading, pooling)
        for name, (reading, pooling, layers) in names.items()
    }
    times = timing.measure(encoder, timed.values(), batch=cost.batch, tokens=cost.tokens, repeats=cost.repeats)
    return {"trunk": times["trunk"], "branch": {name: times["branch"][shape.id][0] for name, shape in timed.items()}}
