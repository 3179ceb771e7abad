"""How well texts out of scope are told: `python benchmarks/scope.py DATA_FOLDER --work FOLDER`.

CLINC150 over the packaged trunk as published: 150 intents to train on, and 1,000 texts of none of them, of which none
is seen before they are judged. Three things are measured.

- A branch of one layer as a project makes it, over seeds: the area under the ROC curve of its scope and, to compare, of
  its confidence; the share of texts that are flagged where 5 % of those in scope may be; its calibration error; what it
  costs; and what changes where texts leave at exits.
- The relative distance and the plain one, at every depth of the trunk.
- Both where there are few classes: of that many intents, drawn again and again, against all other texts.

Result: benchmarks/results/scope.json; docs/out-of-scope.md quotes it. What is trained stays in the project's store.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from trunkline.atomic import write_json
from trunkline.engine.base import Input, Job, Output
from trunkline.engine.choose import choose
from trunkline.engine.load import Loader
from trunkline.engine.timing import compare, uncached
from trunkline.machine import machine
from trunkline.model.branch import Branch, BranchSpec, Reading, load_branch
from trunkline.model.scope import Scope
from trunkline.pipeline.execute import BRANCH, Workshop
from trunkline.pipeline.progress import Silent
from trunkline.pipeline.project import Project
from trunkline.project.readers import read_texts
from trunkline.project.rows import Rows
from trunkline.project.speed import fastest
from trunkline.project.tasks import probabilities
from trunkline.training.leaving import KEEPS
from trunkline.training.material import FIT, TaskMaterial
from trunkline.training.scope import fit, mean_states

RESULT = Path(__file__).resolve().parent / "results" / "scope.json"
SEEDS = (13, 14, 15)
RATE = 0.05
CLASSES = (2, 3, 4, 5, 6, 8, 10, 20, 50)
DRAWS = 5
EPOCHS = 10.0
EXITS = (2, 4)
Scores = NDArray[np.float64]


def main() -> None:
    """Train what is not trained yet, judge it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds utterance/clinc150 and utterance/clinc150_oos")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--rows", type=int, help="at most so many train rows, and texts out of scope: a quick look")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--encoder", default="minilm", help="another trunk")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    started = time.monotonic()
    write_project(options.data / "utterance" / "clinc150", options.work, options.encoder, options.rows)
    strange = texts_of(options.data / "utterance" / "clinc150_oos" / "test.jsonl")[: options.rows]
    project = Project.load(options.work)
    seeds = []
    for seed in SEEDS[: options.seeds]:
        seeds.append({"seed": seed, **judged(project, seed, strange)})
        print(seeds[-1], flush=True)
    material = with_strange(trained(project, SEEDS[0])[0].material("intent"), strange)
    depths, classes = by_depth(material), by_classes(material)
    arguments = "" if options.rows is None else f" --rows {options.rows} --seeds {options.seeds}"
    write_json(
        options.out,
        {
            "command": f"python benchmarks/scope.py DATA_FOLDER --work FOLDER{arguments}",
            "machine": machine(),
            "seconds": round(time.monotonic() - started),
            "trunk": project.source.fingerprint,
            "rows": {"train": len(material.data.train), "valid": len(material.data.valid)}
            | {split: len(rows) for split, rows in material.data.reported.items()},
            "asked": RATE,
            "seeds": seeds,
            "depths": depths,
            "classes": classes,
        },
    )


def write_project(data: Path, work: Path, encoder: str, rows: int | None) -> None:
    """Write a project whose one task is the intents; `valid` is the set's own dev, and its store stays."""
    (work / "tasks").mkdir(parents=True, exist_ok=True)
    (work / "project.toml").write_text(f"encoder = {json.dumps(encoder)}\n[search]\nseeds = {len(SEEDS)}\n")
    splits = {"train": "train", "valid": "dev", "test": "test"}
    sources = [f"{name} = {json.dumps(str((data / f'{split}.jsonl').resolve()))}" for name, split in splits.items()]
    most = [] if rows is None else [f"max_train_rows = {rows}"]
    lines = ['kind = "classification"', "max_tokens = 64", "[data]", *sources, *most, "[tune]", "layers = [1]"]
    lines += [f"epochs = {EPOCHS}", "[distill]", "layers = []", "[scope]", "enabled = true", f"false_alarms = {RATE}"]
    lines += ["[exits]", "enabled = true", f"depths = {list(EXITS)}"]
    (work / "tasks" / "intent.toml").write_text("\n".join(lines) + "\n")


def texts_of(file: Path) -> list[str]:
    """The texts of a file of rows."""
    texts, problems = read_texts(file.parent, file.name, (file.name, "text"))
    if problems:
        raise SystemExit(str(problems[0]))
    return texts


def trained(project: Project, seed: int) -> tuple[Workshop, dict[str, Any], Branch]:
    """The tuned candidate's result, and the branch with scope and exits, trained if need be."""
    tune = f"intent/tune/single/L1/s{seed}"
    workshop = project.train([f"{tune}/speeds"], show=Silent())
    keys = project.graph.keys
    made = load_branch(project.store.get(keys[f"{tune}/speeds"]).folder / BRANCH, workshop.trunk.encoder)
    return workshop, project.store.get(keys[tune]).result, made


def judged(project: Project, seed: int, strange: Sequence[str]) -> dict[str, Any]:
    """What a branch says of texts in scope and out of it, in full and at its speeds, on the engine that serves here."""
    workshop, result, branch = trained(project, seed)
    spec, test = branch.spec, workshop.data("intent").reported["test"].texts
    loader = Loader(workshop.trunk, choose(workshop.trunk, "auto", "auto", "cpu"))
    engine = uncached(loader.engine({"intent": (f"with {seed}", lambda: branch)}))
    bare = Branch(spec.model_copy(update={"scope": None}), branch.layers, branch.norm, branch.head).eval()
    bare.exits = branch.exits
    without = uncached(loader.engine({"intent": (f"without {seed}", lambda: bare)}))
    request = [Job(Input(text), ("intent",)) for text in test[:32]]
    times = compare({"with": lambda: engine.run(request), "without": lambda: without.run(request)}, 50)

    def said(texts: Sequence[str], speed: float) -> list[Output]:
        found, _ = engine.run([Job(Input(text), ("intent",), (("intent", speed),)) for text in texts])
        return [one["intent"] for one in found if isinstance(one["intent"], Output)]

    inside, outside = said(test, 0.0), said(strange, 0.0)
    speeds = []
    for keep in (None, *KEEPS):
        speed = 0.0 if keep is None else fastest(spec.speeds, keep)
        found = {"test": said(test, speed), "strange": said(strange, speed)}
        left = {name: float(np.mean([one.depth < spec.depth for one in some])) for name, some in found.items()}
        flagged = {name: float((scopes(some) > 0).mean()) for name, some in found.items()}
        speeds.append({"keep": keep, "speed": speed, "left_early": left, "flagged": flagged})
    before, after = result["calibration"]["ece"]["test"]
    return {
        "engine": [loader.choice.engine, loader.choice.dtype],
        "fork": spec.fork,
        "accuracy": result["metrics"]["test"]["accuracy"],
        "ece": {"before": before, "after": after},
        "auroc": area(scopes(inside), scopes(outside)),
        "auroc_of_confidence": area(unsure(spec, inside), unsure(spec, outside)),
        "speeds": speeds,
        "bytes": {name: sum(part.nbytes for part in parts) for name, parts in weights(branch).items()},
        "ms": times,
    }


def weights(branch: Branch) -> dict[str, list[NDArray[Any]]]:
    """The branch's tensors, those of its scope at the fork and at its exits apart."""
    fork = str(branch.spec.fork)
    found: dict[str, list[NDArray[Any]]] = {"scope at the fork": [], "scope at exits": [], "all else": []}
    for name, tensor in branch.state_dict().items():
        place = "all else"
        if name.startswith("scopes."):
            place = "scope at the fork" if name.split(".")[1] == fork else "scope at exits"
        found[place].append(tensor.numpy())
    return found


def scopes(found: Sequence[Output]) -> Scores:
    """What each output says of scope."""
    return np.asarray([one.scope for one in found], dtype=np.float64)


def unsure(spec: BranchSpec, found: Sequence[Output]) -> Scores:
    """One less the probability of the answer, of each output."""
    shares = probabilities(spec.kind, spec.calibrated(np.stack([one.logits for one in found]), spec.depth))
    return 1 - shares.max(axis=1)


def area(known: Scores, strange: Scores) -> float:
    """Under the ROC curve: how often a text out of scope is stranger than one in scope."""
    truth = np.concatenate([np.zeros(len(known)), np.ones(len(strange))])
    return float(roc_auc_score(truth, np.concatenate([known, strange])))


def with_strange(material: TaskMaterial, strange: Sequence[str]) -> TaskMaterial:
    """The material with the texts out of scope as one more split, their labels made up: none is looked at."""
    count = len(strange)
    rows = Rows(list(strange), None, [material.data.labels[0]] * count, [f"strange {i}" for i in range(count)])
    data = replace(material.data, reported={**material.data.reported, "strange": rows})
    return replace(material, data=data, _examples={})


def by_depth(material: TaskMaterial) -> list[dict[str, Any]]:
    """Both distances at every depth, from states as they are trained on."""
    depths = range(1, material.trunk.depth + 1)
    train, valid, test, others = means(material, depths)
    classes = np.asarray(material.examples(FIT, Reading.SINGLE).targets)[material.data.train]
    rows = []
    for depth in depths:
        for relative in (True, False):
            scope = fit(train[depth], classes, valid[depth], RATE, relative=relative)
            known, found = (distances(scope, one[depth]) for one in (test, others))
            flagged = {"test": float((known > 0).mean()), "strange": float((found > 0).mean())}
            rows.append({"depth": depth, "relative": relative, "auroc": area(known, found), "flagged": flagged})
    return rows


def by_classes(material: TaskMaterial) -> list[dict[str, Any]]:
    """Both distances for tasks of fewer classes, at the depth that the branch reads: mean area over the draws."""
    depth = material.trunk.depth - 1
    train, valid, test, others = (one[depth] for one in means(material, [depth]))
    targets, said = (np.asarray(material.examples(pool, Reading.SINGLE).targets) for pool in (FIT, "test"))
    rows = []
    for count in CLASSES:
        found: dict[bool, list[float]] = {True: [], False: []}
        for draw in range(DRAWS):
            drawn = np.random.default_rng(draw).choice(len(material.data.labels), count, replace=False)
            picks = [np.isin(targets[split], drawn) for split in (material.data.train, material.data.valid)]
            classes, inside = targets[material.data.train][picks[0]], np.isin(said, drawn)
            for relative, areas in found.items():
                scope = fit(train[picks[0]], classes, valid[picks[1]], RATE, relative=relative)
                known, away, none = (distances(scope, one) for one in (test[inside], test[~inside], others))
                areas.append(area(known, np.concatenate([away, none])))
        rows += [{"classes": count, "relative": one, "auroc": float(np.mean(areas))} for one, areas in found.items()]
    return rows


def distances(scope: Scope, found: Tensor) -> Scores:
    """What a scope says of mean states."""
    return scope.of_means(found)[:, 0].numpy().astype(np.float64)


def means(material: TaskMaterial, depths: Sequence[int]) -> list[dict[int, Tensor]]:
    """Mean states by depth of train, valid, test and the texts out of scope."""
    spec = material.spec(Reading.SINGLE, max(depths), 0)
    splits = [(FIT, material.data.train), *(material.splits()[split] for split in ("valid", "test", "strange"))]
    return [mean_states(material, spec, depths, pool, rows) for pool, rows in splits]


if __name__ == "__main__":
    main()
