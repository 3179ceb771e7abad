"""Fit what tells texts that are unlike a branch's train rows: the relative Mahalanobis distance of `model.scope`.

Means and covariances are those of the train rows; the limit is set by `valid`, which they have not seen, so that a text
like those is flagged as rarely as was asked. No text that is out of scope is needed, and no step is trained.

With covariance W within classes and W + B of all rows, directions that make W one and B diagonal (Fisher's
discriminants, of which there are fewer than classes) hold all that the relative distance can see: in every other
direction the distance from a class and that from all rows cancel. So nothing of H x H is kept.

With so few directions as two or three classes leave, hardly anything shows that is no matter of these classes, and the
plain distance from the nearest class, in every direction of the states, tells more.

Notation: n rows, H width, K classes, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trunkline.model.branch import Branch, BranchSpec
from trunkline.model.scope import Scope, ScopeDepth, ScopeSpec, mean_state
from trunkline.project.scope import least_rate
from trunkline.project.tasks import Kind
from trunkline.training.loop import by_length
from trunkline.training.material import FIT, TaskMaterial
from trunkline.training.states import TOKENS_PER_PASS, at_forks

Floats = NDArray[np.float64]

LEAST_CLASSES = 5
"""From so many on the distance is relative (benchmarks/scope.py compares the two)."""


@dataclass(frozen=True)
class WithScope:
    """A branch with its scope, and the share of rows that it flags by scored split."""

    branch: Branch
    flagged: dict[str, float]


def add_scope(material: TaskMaterial, branch: Branch, false_alarms: float) -> WithScope:
    """Fit a scope at the fork of `branch`, whose own weights stay as they are."""
    scopes = fit_scopes(material, branch.spec, {branch.spec.fork}, false_alarms)
    made = with_scopes(branch, branch.spec, scopes, false_alarms)
    flagged = {split: out_of_scope(material, branch.spec, scopes, split) for split in material.splits()}
    return WithScope(made, {split: float(rows[branch.spec.fork].mean()) for split, rows in flagged.items()})


def fit_scopes(
    material: TaskMaterial, spec: BranchSpec, depths: Collection[int], false_alarms: float
) -> dict[int, Scope]:
    """A scope of the task at each of these depths of the trunk, by the rows that a branch of this reading reads."""
    rows, valid = material.data.train, material.data.valid
    train, held_out = (mean_states(material, spec, depths, FIT, picks) for picks in (rows, valid))
    classes = _classes(material, spec, rows)
    relative = len(np.unique(classes)) >= LEAST_CLASSES
    return {
        depth: fit(train[depth], classes, held_out[depth], false_alarms, relative=relative) for depth in sorted(depths)
    }


def with_scopes(branch: Branch, spec: BranchSpec, scopes: Mapping[int, Scope], false_alarms: float) -> Branch:
    """A branch of `spec` with these scopes, by depth; it shares all else with the one given."""
    depths = tuple(ScopeDepth(depth=depth, directions=len(scopes[depth].curvature)) for depth in sorted(scopes))
    classes = len(scopes[spec.fork].offsets)
    scope = ScopeSpec(false_alarms=false_alarms, classes=classes, depths=depths)
    made = Branch(spec.model_copy(update={"scope": scope}), branch.layers, branch.norm, branch.head)
    made.latents, made.segments, made.exits = branch.latents, branch.segments, branch.exits
    made.scopes = nn.ModuleDict({str(depth): scopes[depth] for depth in sorted(scopes)})
    return made.train(branch.training)


def out_of_scope(
    material: TaskMaterial, spec: BranchSpec, scopes: Mapping[int, Scope], split: str
) -> dict[int, NDArray[np.bool_]]:
    """Which rows of a scored split are flagged, (n,) by depth."""
    pool, rows = material.splits()[split]
    means = mean_states(material, spec, scopes, pool, rows)
    return {depth: scope.of_means(means[depth])[:, 0].numpy() > 0 for depth, scope in scopes.items()}


@torch.no_grad()
def mean_states(
    material: TaskMaterial, spec: BranchSpec, depths: Collection[int], pool: str, rows: NDArray[np.int64]
) -> dict[int, torch.Tensor]:
    """The mean state (n, H) of each of these rows, by depth, as `model.scope.mean_state` has it."""
    slots = material.states_at(pool, spec.reading, depths)
    found = {depth: torch.empty(len(rows), spec.width) for depth in depths}
    for picks in by_length(material.examples(pool, spec.reading).lengths[rows], TOKENS_PER_PASS):
        texts = [at_forks(states, rows[picks]) for states in slots]
        masks = [mask for _, mask in texts]
        for depth, means in found.items():
            means[picks] = mean_state([states[depth].cpu() for states, _ in texts], masks)
    return found


def fit(
    train: torch.Tensor, classes: NDArray[np.int64], held_out: torch.Tensor, false_alarms: float, *, relative: bool
) -> Scope:
    """A scope from the mean states of train rows (n, H), their classes (n,), and those of held-out rows; by the plain
    distance unless `relative`.

    The limit is the split-conformal quantile: another text like the held-out ones is flagged with a probability of at
    most `false_alarms`. Raises ValueError where they are too few for that.
    """
    from scipy.linalg import eigh
    from sklearn.covariance import ledoit_wolf_shrinkage

    if false_alarms < least_rate(len(held_out)):
        raise ValueError(f"{len(held_out)} rows are too few to set a limit that flags {false_alarms:g} of them")
    states = train.numpy().astype(np.float64)
    _, members, counts = np.unique(classes, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), states.shape[1]))
    np.add.at(means, members, states)
    means /= counts[:, None]
    centre = states.mean(0)
    within = states - means[members]
    shrinkage = ledoit_wolf_shrinkage(within, assume_centered=True)
    covariance = within.T @ within / len(states)
    covariance *= 1 - shrinkage
    digits = np.finfo(np.float32).eps * max(1.0, float(np.abs(states).max()))  # rows may be all alike
    covariance.flat[:: len(covariance) + 1] += shrinkage * np.square(within).sum() / within.size + digits**2
    between = (means - centre).T * (counts / len(states)) @ (means - centre)
    ratios, directions = eigh(between, covariance)  # rising; directions' covariance directions = 1
    first = -min(len(counts) - 1, len(ratios)) if relative else 0
    ratios, directions = np.maximum(ratios[first:], 0.0), directions[:, first:].T  # (R,), (R, H)
    curvature = ratios / (1 + ratios) if relative else np.ones_like(ratios)
    ends = (means - centre) @ directions.T  # (K, R)
    return _limited(centre, directions, curvature, ends, held_out, false_alarms)


def _limited(
    centre: Floats, directions: Floats, curvature: Floats, ends: Floats, held_out: torch.Tensor, false_alarms: float
) -> Scope:
    """The scope whose limit is where so few of the held-out rows are beyond it, in units of their deviation."""
    z = (held_out.numpy().astype(np.float64) - centre) @ directions.T  # (n, R)
    found = np.sort(curvature @ np.square(z).T + (np.square(ends).sum(1) - 2 * z @ ends.T).min(1))
    rank = math.ceil((len(found) + 1) * (1 - false_alarms) - 1e-9)  # 1 to n
    limit = (found[rank - 1] + found[min(rank, len(found) - 1)]) / 2
    unit = max(float(found.std()), 1e-6 * (1 + abs(limit)))  # rows may be all alike
    scope = Scope(len(centre), *reversed(ends.shape))
    values = {
        "shift": -centre,
        "directions": directions / np.sqrt(unit),
        "curvature": curvature,
        "slopes": -2 * ends / np.sqrt(unit),
        "offsets": (np.square(ends).sum(1) - limit) / unit,
    }
    scope.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()})
    return scope


def _classes(material: TaskMaterial, spec: BranchSpec, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each of these rows: its label, or one for all where a row may have several or none."""
    if spec.kind in (Kind.CLASSIFICATION, Kind.RELEVANCE):
        return np.asarray(material.examples(FIT, spec.reading).targets)[rows]
    return np.zeros(len(rows), dtype=np.int64)
