"""A branch: own layers and a head over the trunk's states at one fork; the unit of add, update and remove.

Knows how a branch computes and how it is kept in one file. Does not know how it is trained, chosen or served, and holds
no part of the trunk: an encoder is passed in for what its layers share (masks, position biases).

Notation: B rows, T tokens (Ta, Tb of either text), H width, C outputs, m latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trunkline.atomic import write_bytes
from trunkline.errors import BundleError
from trunkline.model.encoders import Encoder
from trunkline.model.exits import ExitSpec, new_exit
from trunkline.model.few import few_layer
from trunkline.model.heads import Head, Pooling, masked_mean
from trunkline.model.scope import Scope, ScopeSpec
from trunkline.model.source import LATENTS
from trunkline.model.tokens import TokenBatch, TokenRow
from trunkline.project.speed import Rule, SpeedPoint
from trunkline.project.tasks import Kind


class Reading(StrEnum):
    """What a branch sees of an input."""

    SINGLE = "single"
    """One text: [CLS] a [SEP]."""
    JOINT = "joint"
    """A pair in one sequence: [CLS] a [SEP] b [SEP], through trunk and branch."""
    SEPARATE = "separate"
    """The trunk reads each text alone; the branch's own layers join their states."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The sequences that the trunk must read for it; equal slots of one input are read once for all tasks."""
        return {"single": ("text",), "joint": ("joint",), "separate": ("text", "pair")}[self.value]


class BranchSpec(BaseModel):
    """What a branch is, apart from its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    kind: Kind
    labels: tuple[str, ...]
    positive: str | None = None
    metric: str
    fork: int = Field(ge=0)
    layers: int = Field(ge=0)
    reading: Reading
    pooling: Pooling
    latents: int = 0
    """Vectors that stand for a row in the own layers, in place of its tokens; 0: the tokens do."""
    crossing: int = 1
    """Own layers, from the first, in which latents read the states; in the others they read each other."""
    max_tokens: int
    width: int
    outputs: int
    mean: float = 0.0
    std: float = 1.0
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by before they become the probabilities of an answer; the logits themselves stay."""
    trunk: str
    exits: tuple[ExitSpec, ...] = ()
    """Where a row may leave before the head, by rising depth."""
    rule: Rule = Rule.ENTROPY
    """What makes a row leave there."""
    speeds: tuple[SpeedPoint, ...] = ()
    """What speeds came to on `valid`, from 0 up; none without exits."""
    scope: ScopeSpec | None = None
    """What tells texts that are unlike those it was trained on, where the task asks for that."""

    @model_validator(mode="after")
    def _exits_on_the_way(self) -> Self:
        depths, allowed = [one.depth for one in self.exits], may_exit(self)
        if depths != sorted(set(depths)) or not all(depth in allowed for depth in depths):
            raise ValueError(f"exits after layers {depths}; they stand from {allowed.start} to {allowed.stop - 1}")
        speeds = [point.speed for point in self.speeds]
        if speeds != sorted(set(speeds)) or speeds[:1] != ([0.0] if depths else []):
            raise ValueError("with exits there are speeds, which rise from 0; without exits there are none")
        strange = sorted({depth for point in self.speeds for depth in point.exits or ()} - set(depths))
        if strange:
            raise ValueError(f"a speed asks exits after layers {strange}, where there are none")
        return self

    @model_validator(mode="after")
    def _scope_where_it_is_read(self) -> Self:
        if self.scope is not None:
            depths = [one.depth for one in self.scope.depths]
            needed = scope_depths(self)
            if depths != needed:
                raise ValueError(f"scope after layers {depths}; with this fork and these exits it stands at {needed}")
            if max(one.directions for one in self.scope.depths) > self.width:
                raise ValueError(f"a scope of more directions than the {self.width} that states have")
        return self

    @property
    def depth(self) -> int:
        """Layers from the embeddings to the head, the trunk's and the branch's own."""
        return self.fork + self.layers

    def exits_at(self, speed: float) -> frozenset[int]:
        """The depths at which a row of this speed may leave: those of the last speed in the table that is no higher;
        all below the first that is not 0, so that what goes by all of them can be proved.
        """
        if not speed:
            return frozenset()
        asked = [point.exits for point in self.speeds if 0 < point.speed <= speed]
        if not asked or asked[-1] is None:
            return frozenset(one.depth for one in self.exits)
        return frozenset(asked[-1])

    @property
    def own_exits(self) -> bool:
        """Whether a row may leave between the branch's own layers."""
        return any(one.depth > self.fork for one in self.exits)

    def calibrated(self, logits: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Logits from which probabilities are made, of those that were given after `depth` layers: divided by the
        temperature of the exit or head there. Regression has none.
        """
        if self.kind is Kind.REGRESSION:
            return logits
        return logits / next((one.temperature for one in self.exits if one.depth == depth), self.temperature)

    @property
    def outside(self) -> int:
        """Tagging: the index of the tag "O", the first where there is none."""
        return self.labels.index("O") if "O" in self.labels else 0


def may_exit(spec: BranchSpec) -> range:
    """The depths at which a branch can have exits: in the trunk and, where its own layers read tokens, among these.

    Two texts that are read apart are not together on the way, so that nothing there can answer for both.
    """
    if spec.reading is Reading.SEPARATE:
        return range(0)
    return range(1, spec.fork + 1 if spec.latents else spec.depth)


def scope_depths(spec: BranchSpec) -> list[int]:
    """Where a branch with a scope takes it, by rising depth: where its exits in the trunk are, and at its fork."""
    return sorted({spec.fork, *(one.depth for one in spec.exits if one.depth < spec.fork)})


class Branch(nn.Module):
    """Own layers, their final norm where the family has one, a head, the exits on the way to it, and its scope by
    depth.

    `forward` takes one (states, mask) per text read, states (B, T, H) at the fork, and gives logits (B, C), or (B, T,
    C) per subword for tagging. Regression comes in the unit of the task's data: `mean + std * output`.
    """

    def __init__(self, spec: BranchSpec, layers: nn.ModuleList, norm: nn.Module, head: Head) -> None:
        super().__init__()
        self.spec = spec
        self.layers = layers
        self.norm = norm
        self.head = head
        tokens = spec.kind is Kind.TAGGING
        self.exits = nn.ModuleDict(
            {str(one.depth): new_exit(one.form, spec.width, spec.outputs, tokens=tokens) for one in spec.exits}
        )
        scope = spec.scope
        self.scopes = nn.ModuleDict(
            {str(one.depth): Scope(spec.width, one.directions, scope.classes) for one in scope.depths} if scope else {}
        )
        # Zero at first: a fresh branch sees the two texts as the trunk left them.
        self.segments = nn.Parameter(torch.zeros(2, spec.width)) if spec.reading is Reading.SEPARATE else None
        # Small, so that a fresh branch has what the trunk made of the texts, and latents that are not all alike.
        self.latents = nn.Parameter(0.02 * torch.randn(spec.latents, spec.width)) if spec.latents else None

    def forward(self, encoder: Encoder, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        return self.watched(encoder, states, masks)[0]

    def watched(
        self, encoder: Encoder, states: Sequence[Tensor], masks: Sequence[Tensor], *, first: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """What `forward` gives, and the states after each own layer, (B, Ta + Tb, H) for texts read apart; none of
        latents. With `first` the last layer runs for position 0 alone, (B, 1, H), where nothing else of it is read.
        """
        each: list[Tensor] = []
        sizes = [text.shape[1] for text in states]
        if self.segments is not None:
            states = [text + segment for text, segment in zip(states, self.segments, strict=True)]
        joined = states[0] if len(sizes) == 1 else torch.cat(list(states), dim=1)  # (B, Ta + Tb, H)
        mask = masks[0] if len(sizes) == 1 else torch.cat(list(masks), dim=1)  # (B, Ta + Tb)
        if self.latents is not None:
            latents = first_latents(self.latents, states, masks)  # (B, m, H)
            for layer in self.layers[: self.spec.crossing]:
                latents = few_layer(layer, encoder, absorb=False)(latents, joined, mask.bool())
            latents = latents_alone(encoder, self.spec, self.layers[self.spec.crossing :], latents)
            logits: Tensor = self.head((self.norm(latents),), tuple(masks))
        else:
            first = first and first_alone(self.spec, encoder) and len(self.layers) > 0
            whole = self.layers[:-1] if first else self.layers
            each = list(layer_states(encoder, whole, self.spec.fork, joined, mask))
            if first:
                each.append(first_state(encoder, self.layers[-1], each[-1] if each else joined, mask))
                sizes = [1]
            joined = self.norm(each[-1] if each else joined)
            logits = self.head(joined.split(sizes, dim=1), tuple(masks))
        return in_unit(self.spec, logits), each

    def at_exit(self, depth: int, states: Tensor, mask: Tensor) -> Tensor:
        """Logits, as `forward` gives them, of the exit that reads the states (B, T, H) after `depth` layers."""
        return in_unit(self.spec, self.exits[str(depth)](states, mask))

    def strangeness(self, depth: int, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """(B, 1) of the texts' states at one of the depths of its scope; above 0 is out of scope."""
        found: Tensor = self.scopes[str(depth)](states, masks)
        return found

    def own_states(self, encoder: Encoder, states: Tensor, mask: Tensor) -> Iterator[Tensor]:
        """The states (B, T, H) after each own layer but the last, from those at the fork."""
        return layer_states(encoder, self.layers[:-1], self.spec.fork, states, mask)

    def end(self) -> Branch:
        """The last own layer, norm and head as a branch of their own, which reads what `own_states` gives last."""
        alone = {"fork": self.spec.depth - 1, "layers": 1, "exits": (), "speeds": (), "scope": None}
        spec = self.spec.model_copy(update=alone)
        return Branch(spec, self.layers[-1:], self.norm, self.head).train(self.training)


def in_unit(spec: BranchSpec, logits: Tensor) -> Tensor:
    """The output of a head or an exit in the unit of the task's data: regression is learned in standard deviations."""
    if spec.kind is not Kind.REGRESSION:
        return logits
    return spec.mean + spec.std * logits.float()  # bf16 would round the task's unit away


def layer_states(encoder: Encoder, layers: nn.ModuleList, index: int, states: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """The states after each of own layers in the place of the encoder's from `index` on, over states (B, T, H) with
    their mask (B, T).
    """
    context = encoder.context(mask, states.dtype) if len(layers) else None
    for place, layer in enumerate(layers, index):
        states = encoder.run(layer, place, states, context)
        yield states


def first_alone(spec: BranchSpec, encoder: Encoder) -> bool:
    """Whether the layer below the head may be trained for position 0 alone: no other is read, and the family can."""
    return spec.pooling is Pooling.CLS and encoder.family in LATENTS


def states_to(encoder: Encoder, batch: TokenBatch, depth: int, *, first: bool) -> list[Tensor]:
    """The states (B, T, H) before an encoder's first layer and after each, to `depth`; after that one, with `first`,
    of position 0 alone, (B, 1, H).
    """
    if not first:
        return encoder.hidden_states(batch, depth)
    states = encoder.hidden_states(batch, depth - 1)
    return [*states, first_state(encoder, encoder.layers[depth - 1], states[-1], batch.mask)]


def first_state(encoder: Encoder, layer: nn.Module, states: Tensor, mask: Tensor) -> Tensor:
    """What a layer of a family in `LATENTS` makes of position 0 of states (B, T, H), (B, 1, H): the same as where it
    runs for all, for a fraction of the work.
    """
    found: Tensor = few_layer(layer, encoder, absorb=False)(states[:, :1], states, mask.bool())
    return found


def run_layers(encoder: Encoder, layers: nn.ModuleList, index: int, states: Tensor, mask: Tensor) -> Tensor:
    """The last of `layer_states`; without layers, the states as they are."""
    *_, last = states, *layer_states(encoder, layers, index, states, mask)
    return last


def first_latents(offsets: Tensor, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """What latents start from, (B, m, H): in turn, [CLS] and the mean of each text, each with its offset (m, H)."""
    pooled = [part for text, mask in zip(states, masks, strict=True) for part in (text[:, 0], masked_mean(text, mask))]
    return torch.stack([pooled[latent % len(pooled)] for latent in range(len(offsets))], dim=1) + offsets


def latents_alone(encoder: Encoder, spec: BranchSpec, layers: nn.ModuleList, latents: Tensor) -> Tensor:
    """Latents (B, m, H) through the own layers in which they read each other alone."""
    mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    return run_layers(encoder, layers, spec.fork + spec.crossing, latents, mask)


def new_branch(spec: BranchSpec, encoder: Encoder, *, random: bool = False) -> Branch:
    """A branch whose layers start as the encoder's own above the fork (or as the family's fresh ones, if `random`)."""
    layers = encoder.copy_layers(spec.fork, spec.fork + spec.layers, random=random)
    return Branch(
        spec, layers, encoder.final_norm(), Head(spec.width, spec.outputs, spec.pooling, latents=spec.latents)
    )


def save_branch(branch: Branch, path: Path) -> str:
    """Write one safetensors file, its spec in the header; the same branch always gives the same bytes. Returns their
    sha256.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in branch.state_dict().items()}
    # A spec without scope is written as it was before there was any, so that such a branch keeps its bytes.
    spec = branch.spec.model_dump(mode="json", exclude={"scope"} if branch.spec.scope is None else None)
    # One metadata key only: the format does not fix the order of several.
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    data = save(tensors, metadata={"branch": text})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_spec(path: Path) -> BranchSpec:
    """The spec in a branch file's header, without reading its weights. Raises BundleError where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("branch")
        if text is None:
            raise BundleError(f"{path.name} is not a branch file: its header holds no branch")
        return BranchSpec.model_validate_json(text)
    except (SafetensorError, ValidationError, OSError) as error:
        raise BundleError(f"{path.name} is not a readable branch file: {error}") from error


def load_branch(path: Path, encoder: Encoder) -> Branch:
    """Read a branch file for this encoder, in eval mode. Raises BundleError where the two do not fit."""
    spec = read_spec(path)
    if spec.width != encoder.width or not 0 <= spec.fork <= spec.fork + spec.layers <= encoder.depth:
        raise BundleError(
            f"branch '{spec.task}' reads fork {spec.fork} with {spec.layers} layers of width {spec.width}; "
            f"this trunk has {encoder.depth} layers of width {encoder.width}"
        )
    if spec.max_tokens > encoder.reader.max_positions:
        raise BundleError(
            f"branch '{spec.task}' reads {spec.max_tokens} tokens; this trunk reads {encoder.reader.max_positions}"
        )
    branch = new_branch(spec, encoder)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        branch.load_state_dict(tensors)
    except RuntimeError as error:
        raise BundleError(f"branch '{spec.task}' does not fit this trunk: {error}") from error
    return branch.eval()


def check_trunk(spec: BranchSpec, fingerprint: str) -> None:
    """Raises BundleError for a branch that was made for another trunk than that of this fingerprint."""
    if spec.trunk != fingerprint:
        raise BundleError(f"branch '{spec.task}' was made for trunk {spec.trunk[:16]}, not {fingerprint[:16]}")


def first_subwords(row: TokenRow, words: Sequence[tuple[int, int]]) -> list[int | None]:
    """The position in `row` of the first subword of each word of the first text; None where truncation took it."""
    firsts: list[int | None] = []
    position = 0
    for start, end in words:
        while position < len(row.ids) and (
            row.sequence[position] != 0
            or row.offsets[position][1] <= start
            or row.offsets[position][0] == row.offsets[position][1]
        ):
            position += 1
        found = position < len(row.ids) and row.offsets[position][0] < end
        firsts.append(position if found else None)
    return firsts


def word_logits(logits: np.ndarray, firsts: Sequence[int | None], outside: int) -> np.ndarray:
    """Logits per word: (T, C) of one row's subwords -> (words, C); a truncated word is scored as `outside` ("O")."""
    missing = np.full(logits.shape[-1], -10.0, dtype=logits.dtype)
    missing[outside] = 10.0
    return np.stack([missing if first is None else logits[first] for first in firsts]) if firsts else logits[:0]
