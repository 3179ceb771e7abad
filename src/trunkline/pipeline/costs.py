"""What the parts of a merged model cost on this machine: measured once per set of shapes, kept until `forget`.

Knows shapes and times. Which candidates have them, and what is made of it, is `assemble`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trunkline.atomic import remove_folder
from trunkline.machine import machine
from trunkline.model.source import Source
from trunkline.pipeline.select import READS, TrunkCost
from trunkline.pipeline.store import Store, key_of
from trunkline.project.config import CostSettings

COST_VERSION = 4
END = "end"

BranchShape = tuple[str, str, int, int, int, str]
"""(reading, pooling, own layers, latents, layers that cross, ""): all of a branch that time depends on; or, of an exit,
its form in the last place, and `END` of the last layer and head of a branch that runs layer by layer.
"""


@dataclass(frozen=True)
class Measured:
    """Milliseconds on the reference request; the trunk to each depth, and every branch apart from it.

    `engine` and `dtype` are what ran.
    """

    engine: str
    dtype: str
    trunk: TrunkCost
    branch: Mapping[BranchShape, float]

    def full(self, reading: str, pooling: str, depth: int) -> float:
        """One separate full model of `depth` layers, in the form that is cheapest on the engine."""
        return min(
            sum(self.trunk.ms[slot][depth - own] for slot in READS[reading])
            + self.branch[reading, pooling, own, 0, 1, ""]
            for own in _in_branch(pooling)
        )


def _in_branch(pooling: str) -> tuple[int, ...]:
    """How many layers of a full model may stand in its branch: where its head reads [CLS] alone, an engine need not
    compute the last one for other rows.
    """
    return (0, 1) if pooling == "cls" else (0,)


def full_shapes(branch: Mapping[str, Any]) -> list[BranchShape]:
    """The shapes that the cost of a full model is made of."""
    return [(branch["reading"], branch["pooling"], own, 0, 1, "") for own in _in_branch(branch["pooling"])]


def shape_of(branch: Mapping[str, Any]) -> BranchShape:
    """The shape of a finished stage's branch."""
    reading, pooling, layers = branch["reading"], branch["pooling"], branch["layers"]
    return reading, pooling, layers, branch.get("latents", 0), branch.get("crossing", 1), ""


def exit_shape(branch: Mapping[str, Any], form: str, *, own: bool = False) -> BranchShape:
    """The shape of an exit of this form on the way to a finished stage's branch, in the trunk or between `own` layers,
    which are run otherwise.
    """
    return branch["reading"], "tokens" if branch["pooling"] == "tokens" else "cls", 2 if own else 0, 0, 1, form


def end_shape(branch: Mapping[str, Any]) -> BranchShape:
    """The shape of the last layer and head of a finished stage's branch, where the layers before run one by one."""
    return branch["reading"], branch["pooling"], 2, 0, 1, END


def measure(
    source: Source, cost: CostSettings, store: Store, shapes: Iterable[BranchShape], say: Callable[[str], None]
) -> Measured:
    """Times of these shapes over this encoder, all in one run; from the store where they were measured before."""
    names = {"/".join(str(part) for part in shape if part != ""): shape for shape in sorted(set(shapes))}
    fields = {
        "machine": machine(),
        "openvino": None if cost.engine == "torch" else openvino_version(),
        "encoder": source.fingerprint,
        "cost": cost.model_dump(mode="json"),
        "shapes": list(names),
    }
    key = key_of(["cost", COST_VERSION, fields])
    if key not in store:
        say(f"measuring {len(names)} shapes at batch {cost.batch} x {cost.tokens} tokens")
        store.put(key, fields, lambda _artifacts, _work: _measure(source, cost, names))
    result = store.get(key).result
    branch = {shape: result["branch"][name] for name, shape in names.items()}
    return Measured(result["engine"], result["dtype"], TrunkCost(result["trunk"]), branch)


def openvino_version() -> str | None:
    """The version of OpenVINO that is installed, if one is."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def forget(store: Store, tasks: Collection[str]) -> None:
    """Drop every time that was measured on this machine, so that what is asked for next is measured again, and what was
    chosen by such times among the exits of these tasks.
    """
    here = machine()
    for folder in sorted(store.stages.iterdir()):
        entry = store.get(folder.name)
        if entry.fields.get("machine") == here or (
            entry.result.get("machine") == here and entry.fields.get("task") in tasks
        ):
            remove_folder(folder)


def _measure(source: Source, cost: CostSettings, names: Mapping[str, BranchShape]) -> dict[str, Any]:
    from trunkline.engine import timing
    from trunkline.engine.choose import choose
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    trunk = Trunk(Encoder.load(source.path), source.fingerprint)
    choice = choose(trunk, cost.engine, device="cpu")
    # One fork serves for all: layers of an encoder cost alike wherever they stand.
    timed = {
        name: timing.Shape(
            trunk.depth - layers, layers, reading, pooling, latents, crossing, "" if part == END else part, part == END
        )
        for name, (reading, pooling, layers, latents, crossing, part) in names.items()
    }
    times = timing.measure(trunk, choice, timed.values(), batch=cost.batch, tokens=cost.tokens, repeats=cost.repeats)
    return {
        "engine": choice.engine,
        "dtype": choice.dtype,
        "trunk": times["trunk"],
        "branch": {name: times["branch"][shape.id][0] for name, shape in timed.items()},
    }
