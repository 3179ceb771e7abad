"""The data of a report: candidates, what was chosen and why, quality on the reported splits, measured time against
separate models.

Composes what the store holds and one last measurement; draws nothing (that is report/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from trunkline.bundle.release import Release
from trunkline.machine import machine
from trunkline.pipeline.assemble import Assembly, Options
from trunkline.pipeline.compared import Ensemble, compared
from trunkline.pipeline.costs import openvino_version
from trunkline.pipeline.execute import BRANCH, ENCODER
from trunkline.pipeline.select import READS, Candidate, Choice
from trunkline.pipeline.stages import Stage, StageKind
from trunkline.pipeline.store import Entry, key_of
from trunkline.project.config import CostSettings
from trunkline.project.stage_settings import DistillSettings

if TYPE_CHECKING:
    from trunkline.engine.base import Input
    from trunkline.model.encoders import Encoder

COMPARE_VERSION = 3


def make_report(
    assembly: Assembly, options: Options, release: Release, say: Callable[[str], None], ensemble: Ensemble
) -> dict[str, Any]:
    """Everything that the page and the terminal show of a release."""
    settings = assembly.files.settings
    selection = assembly.selections.of(release)
    if selection is None:
        raise AssertionError("a release is published with its selection")
    chosen = {task: id for task, id in selection.chosen.items() if task in options.full_quality}
    by_id = {candidate.id: candidate for candidate in options.candidates}
    picked = {task: by_id[id] for task, id in chosen.items()}
    scored = assembly.evaluate(release)
    source = assembly.source
    return {
        "project": settings.name or assembly.files.root.name,
        "encoder": {
            "name": source.name,
            "depth": source.depth,
            "width": source.width,
            "fingerprint": source.fingerprint,
        },
        "machine": machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cost": {
            "batch": settings.cost.batch,
            "tokens": settings.cost.tokens,
            "engine": options.measured.engine,
            "dtype": options.measured.dtype,
        },
        "tasks": {
            task: {
                **_task(assembly, options, task, picked[task], scored[task]),
                "teaching": compared(assembly, options, task, ensemble),
            }
            for task in sorted(picked)
        },
        "merged": _merged(assembly, options, release, picked, scored, selection.met, say),
        "depths": [_depth(assembly, options, depth, choice) for depth, choice in assembly.by_depth(options)],
        "paper_rule": {
            "marginal_gain": settings.search.marginal_gain,
            **_relative(assembly, options, assembly.by_paper(options)),
        },
        "release": {"id": release.id, "bundle": release.bundle},
        "wish": selection.wish,
    }


def _task(
    assembly: Assembly, options: Options, task: str, picked: Candidate, scored: dict[str, dict[str, float]]
) -> dict[str, Any]:
    prepared = assembly.store.get(assembly.graph.keys[f"{task}/prepare"]).result
    metric, split = assembly.metric(task), prepared["reported"]
    best = options.best[picked.id]
    full = options.full[task]
    return {
        "kind": assembly.files.tasks[task].kind.value,
        "metric": metric,
        "rows": prepared["rows"],
        "reported": split,
        "notes": prepared["notes"],
        "baseline": {
            "valid": options.full_quality[task],
            "metrics": _mean([entry.result["metrics"][split] for entry in full]),
            "ms": options.full_ms[task],
            "reading": full[0].fields["reading"],
            "learning_rate": full[0].fields["schedule"]["learning_rate"],
        },
        "candidates": [
            _candidate(assembly, options, stage, picked.id)
            for stage in assembly.graph.of(task, StageKind.TUNE, StageKind.DISTILL)
        ],
        "chosen": {
            "id": picked.id,
            "fork": picked.fork,
            "layers": picked.layers,
            "latents": best.result["branch"].get("latents", 0),
            "reading": picked.reading,
            "seed": best.fields["seed"],
            "valid": picked.quality,
            "metrics": scored[split],
            "calibration": _calibration(best.result["calibration"], split),
            "ms": picked.ms,
        },
        "scope": _scope(assembly, best, split),
        "exits": _exits(assembly, best, split),
    }


def _finishing(assembly: Assembly, best: Entry, kind: StageKind) -> tuple[Stage, dict[str, Any]] | None:
    """The stage of this kind that finished a branch, and its result; None where the task asks for none."""
    stage = next((stage for stage in assembly.graph.finishing_of(best.key) if stage.kind is kind), None)
    return None if stage is None else (stage, assembly.store.get(assembly.graph.keys[stage.id]).result)


def _scope(assembly: Assembly, best: Entry, split: str) -> dict[str, float] | None:
    """The rate of false alarms that a task asks for, and the share of `valid` and of the reported split that its branch
    flags. None where the task asks for no scope.
    """
    found = _finishing(assembly, best, StageKind.SCOPE)
    if found is None:
        return None
    stage, result = found
    asked = stage.fields["scope"]["false_alarms"]
    return {"asked": asked, "valid": result["flagged"]["valid"], "reported": result["flagged"][split]}


def _exits(assembly: Assembly, best: Entry, split: str) -> dict[str, Any] | None:
    """The exits of a branch, and what its speeds come to: layers, as a fraction of all, and time on the reported split,
    with the shares of its rows that left at each exit and that the head answered, and the calibration error of what
    they were answered; and the `curve` of all speeds. None where the task asks for none.
    """
    finished = _finishing(assembly, best, StageKind.SPEEDS)
    if finished is None:
        return None
    stage, found = finished
    at = {name: {point["speed"]: point for point in points} for name, points in found["speeds"].items()}

    def came_to(speed: float) -> dict[str, float]:
        here = at[split][speed]
        return {
            "speed": speed,
            "valid": at["valid"][speed]["quality"],
            "reported": here["quality"],
            "layers": here["layers"] / found["depth"],
            "time": here["time"],
        }

    def at_keep(place: int, one: Mapping[str, float]) -> dict[str, Any]:
        left, calibration = found["left"][split][place], found["ece"][split][place]
        return {"keep": one["keep"], **came_to(one["speed"]), "left": left, "calibration": calibration}

    calibration = _calibration(best.result["calibration"], split)
    full = {"keep": None, **came_to(0.0), "left": [0.0] * len(found["exits"]) + [1.0]} if at else None
    if full and calibration:
        full["calibration"] = calibration["after"]
    return {
        "rule": stage.fields["rule"],
        "kept": [{"depth": one["depth"], "form": one["form"]} for one in found["exits"]],
        "speeds": [
            *([full] if full else []),
            *(at_keep(place, one) for place, one in enumerate(found["keeps"])),
        ],
        "curve": [came_to(speed) for speed in at.get(split, ())],
    }


def _calibration(found: Mapping[str, Any] | None, split: str) -> dict[str, Any] | None:
    """A branch's temperature, and its calibration error on a split before and after; None without confidence."""
    if found is None:
        return None
    before, after = found["ece"][split]
    return {"temperature": found["temperature"], "before": before, "after": after}


def _candidate(assembly: Assembly, options: Options, stage: Stage, picked: str) -> dict[str, Any]:
    entry = assembly.store.get(assembly.graph.keys[stage.id])
    branch = entry.result["branch"]
    metric = assembly.metric(stage.task)
    split = assembly.store.get(assembly.graph.keys[f"{stage.task}/prepare"]).result["reported"]
    candidate = next(one for one in options.candidates if stage.id.startswith(f"{one.id}/s"))
    return {
        "id": stage.id,
        "stage": stage.kind.value,
        "fork": branch["fork"],
        "layers": branch["layers"],
        "latents": branch.get("latents", 0),
        "reading": branch["reading"],
        "init": _start(assembly, stage),
        "teacher": _teacher(stage),
        "seed": stage.fields["seed"],
        "valid": entry.result["metrics"]["valid"][metric],
        "reported": entry.result["metrics"][split][metric],
        "ms": candidate.ms,
        "ms_alone": options.measured.trunk.of([candidate]) + candidate.ms,
        "chosen": entry.key == options.best[picked].key,
    }


def _start(assembly: Assembly, stage: Stage) -> str | None:
    """What a student's layers started from, which of them where not the bottom ones, and how many unlabelled rows they
    had learned, where there was a first stage.
    """
    init = ", ".join(stage.fields[name] for name in ("init", "take") if name in stage.fields) or None
    for need in stage.needs:
        if assembly.graph.stages[need].kind is StageKind.PRETRAIN:
            first = assembly.store.get(assembly.graph.keys[need])
            return f"{init} on {first.result['rows']['train']:,} rows, from {first.fields['init']}"
    return init


def _teacher(stage: Stage) -> str | None:
    """Who taught a student, and by what loss where that is not the usual one."""
    if stage.kind is not StageKind.DISTILL:
        return None
    if not stage.teachers:
        return "labels alone"
    usual, asked = DistillSettings(), stage.fields["schedule"]
    parts = ["+".join(stage.fields["teachers"])]
    parts += [f"T {asked['temperature']:g}"] if asked["temperature"] not in usual.temperature else []
    parts += [f"labels × {asked['gold_weight']:g}"] if asked["gold_weight"] not in usual.gold_weight else []
    parts += [stage.fields[name].replace("_", " ") for name in ("mode", "loss") if name in stage.fields]
    parts += [f"{teacher} × {weight:g}" for teacher, weight in stage.fields.get("weights", {}).items()]
    parts += [f"hidden states × {stage.fields['hidden']:g}"] if "hidden" in stage.fields else []
    parts += [f"by the {stage.fields['layer_map']} layers"] if "layer_map" in stage.fields else []
    return ", ".join(parts)


def _merged(
    assembly: Assembly,
    options: Options,
    release: Release,
    picked: dict[str, Candidate],
    scored: dict[str, dict[str, dict[str, float]]],
    met: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    times = _compare(assembly, options, release, sorted(picked), say)
    quality, full = [], []
    for task in picked:
        split = assembly.store.get(assembly.graph.keys[f"{task}/prepare"]).result["reported"]
        metric = assembly.metric(task)
        quality.append(scored[task][split][metric])
        full.append(_mean([entry.result["metrics"][split] for entry in options.full[task]])[metric])
    layers, separate = layer_count(list(picked.values())), assembly.source.depth * len(picked)
    return {
        "trunk_depth": max(candidate.fork for candidate in picked.values()),
        "layers_in_graph": layers,
        "layers_separate": separate,
        "relative_layers": layers / separate,
        "ms_merged": times["merged"],
        "ms_separate": times["separate"],
        "relative_time": times["merged"] / times["separate"],
        "quality": float(np.mean(quality)),
        "quality_full": float(np.mean(full)),
        "relative_quality": float(np.mean(quality) / np.mean(full)),
        "budget": assembly.files.settings.budget.model_dump(mode="json"),
        "met": met,
    }


def layer_count(picked: Sequence[Candidate]) -> int:
    """The paper's count: layers of the trunk that are run, plus every branch's own."""
    return max(c.fork for c in picked) + sum(c.layers for c in picked)


def _depth(assembly: Assembly, options: Options, depth: int, choice: Choice | None) -> dict[str, Any]:
    if choice is None:
        return {"depth": depth, "feasible": False, "relative_quality_valid": None, "relative_time": None, "choice": {}}
    return {"depth": depth, "feasible": choice.met, **_relative(assembly, options, choice.candidates)}


def _relative(assembly: Assembly, options: Options, picked: Mapping[str, Candidate]) -> dict[str, Any]:
    """A set of candidates against separate full models: quality on `valid`, time as measured apart, layers."""
    chosen = list(picked.values())
    ms = options.measured.trunk.of(chosen) + sum(c.ms for c in chosen)
    quality = np.mean([c.quality for c in chosen]) / np.mean(list(options.full_quality.values()))
    return {
        "relative_quality_valid": float(quality),
        "relative_time": ms / sum(options.full_ms.values()),
        "relative_layers": layer_count(chosen) / (assembly.source.depth * len(chosen)),
        "choice": {task: f"{c.id}/s{options.best[c.id].fields['seed']}" for task, c in picked.items()},
    }


def _mean(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


def _compare(
    assembly: Assembly, options: Options, release: Release, tasks: list[str], say: Callable[[str], None]
) -> dict[str, float]:
    """Milliseconds of the reference request through the merged model and through one full model per task: same engine,
    same run, in turn. Kept in the store per release.
    """
    cost, measured = assembly.files.settings.cost, options.measured
    fulls = {task: options.full[task][0] for task in tasks}
    fields = {
        "machine": machine(),
        "cost": cost.model_dump(mode="json"),
        "engine": [measured.engine, measured.dtype, openvino_version() if measured.engine == "openvino" else None],
        "branches": release.tasks,
        "full": {task: entry.key for task, entry in fulls.items()},
    }
    key = key_of(["compare", COMPARE_VERSION, fields])
    if key not in assembly.store:
        say(f"measuring the merged model against {len(tasks)} separate full models")
        assembly.store.put(
            key, fields, lambda _a, _w: compare(assembly, release, fulls, cost, measured.engine, measured.dtype)
        )
    result: dict[str, float] = assembly.store.get(key).result
    return result


def compare(
    assembly: Assembly, release: Release, fulls: dict[str, Entry], cost: CostSettings, engine: str, dtype: str
) -> dict[str, float]:
    """Median milliseconds of one request for all tasks. The separate models share one encoder's weights, which favours
    them: N real ones would not stay in the processor's cache.
    """
    from trunkline.bundle.loaded import Bundle
    from trunkline.engine.load import Loader
    from trunkline.engine.timing import compare as in_turn
    from trunkline.engine.timing import uncached, with_last_layer
    from trunkline.model.branch import load_branch
    from trunkline.model.encoders import Encoder
    from trunkline.model.trunk import Trunk

    bundle = Bundle.load(assembly.releases.folder(release), engine=engine, dtype=dtype)
    first = next(iter(fulls.values()))
    trunk = Trunk(Encoder.load(first.folder / ENCODER), assembly.source.fingerprint)
    loader = Loader(trunk, bundle.loader.choice)
    separate = {}
    for task, entry in fulls.items():
        branch = with_last_layer(load_branch(entry.folder / BRANCH, trunk.encoder), trunk.encoder)
        sources = {task: (entry.key, lambda branch=branch: branch)}
        separate[task] = uncached(loader.engine(sources))
    merged = uncached(bundle.engine)
    pairs = any(len(READS[s.reading]) > 1 or s.reading == "joint" for s in bundle.specs.values())
    request = reference_request(trunk.encoder, cost.batch, cost.tokens, pairs=pairs)

    def one_each() -> None:
        for task, engine in separate.items():
            engine.logits(request, [task], batch_size=cost.batch)

    return in_turn(
        {"merged": lambda: merged.logits(request, list(fulls), batch_size=cost.batch), "separate": one_each},
        cost.repeats,
    )


def reference_request(encoder: Encoder, batch: int, tokens: int, *, pairs: bool) -> list[Input]:
    """`batch` inputs whose texts (and pairs) are `tokens` tokens each, all different."""
    from trunkline.engine.base import Input

    words = sorted(word for word in encoder.reader.tokenizer.get_vocab() if word.isascii() and word.isalpha())
    rng = np.random.default_rng(0)
    limit = encoder.reader.max_positions

    def text() -> str:
        chosen = [words[i] for i in rng.integers(0, len(words), tokens)]
        while len(chosen) > 1 and len(encoder.tokenize([" ".join(chosen)], max_tokens=limit)[0]) > tokens:
            chosen.pop()
        return " ".join(chosen)

    return [Input(text(), text() if pairs else None) for _ in range(batch)]
