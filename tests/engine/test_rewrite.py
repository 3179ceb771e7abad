"""Cheaper forms of a branch are exact, in torch, traced and converted, and really cheaper."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from branches import load_trunk, random_branch, tiny_source
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trunkline.engine.rewrite import absorbed, cls_only, forms
from trunkline.model.branch import Branch
from trunkline.model.exits import Form, fast_exit, new_exit
from trunkline.model.families import FAMILIES
from trunkline.model.few import AbsorbedKeys, AbsorbedValues, FewQueries, PlainKeys, PlainValues
from trunkline.model.source import LATENTS
from trunkline.model.trunk import Trunk

EXACT = 1e-5  # of the largest output, where that is above 1
DEPTH = 3
WIDTH = 32
POOLINGS = {"single": ("cls", "mean", "concat"), "joint": ("cls", "mean", "concat"), "separate": ("cls", "pair")}
ALL = {"plain", "cls_only", "absorbed"}

Make = Callable[..., Trunk]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Trunks of tiny encoders by family, kept; with `changes` to the family's config, made anew."""
    kept: dict[str, Trunk] = {}
    usual = tiny.tiny_config

    def make(family: str, **changes: Any) -> Trunk:
        if not changes and family in kept:
            return kept[family]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "tiny_config", lambda *given, **options: {**usual(*given, **options), **changes})
            width = changes.get("hidden_size", WIDTH)
            trunk = load_trunk(
                tiny_source(tmp_path_factory.mktemp(family) / "encoder", family, layers=DEPTH, width=width)
            )
        if not changes:
            kept[family] = trunk
        return trunk

    return make


def batch(branch: Branch, *, rows: int = 5, tokens: int = 7, seed: int = 0) -> list[Tensor]:
    """Random states and masks as the forms take them: padding at the end of each text, the last row all padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [tokens + 2 * text for text in range(len(branch.spec.reading.slots))]
    states = [torch.randn(rows, size, branch.spec.width, generator=generator) for size in sizes]
    masks = []
    for size in sizes:
        lengths = torch.randint(1, size + 1, (rows, 1), generator=generator)
        lengths[0], lengths[-1] = size, 0
        masks.append(torch.arange(size)[None, :] < lengths)
    return [*states, *masks]


def expected(branch: Branch, trunk: Trunk, inputs: list[Tensor]) -> Tensor:
    """The branch's own logits of all rows but the last."""
    half = len(inputs) // 2
    rows = [tensor[:-1] for tensor in inputs]
    with torch.inference_mode():
        return branch(trunk.encoder, rows[:half], rows[half:])


def check(found: Tensor, reference: Tensor, what: object) -> None:
    assert torch.isfinite(found).all(), what
    error = (found[:-1] - reference).abs().max() / reference.abs().max().clamp(min=1)
    assert error <= EXACT, (what, float(error))


def applicable(branch: Branch) -> set[str]:
    if branch.spec.pooling != "cls":
        return {"plain"}
    return ALL if branch.spec.layers else {"plain", "cls_only"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_form_that_applies_equals_the_branch(made: Make, family: str) -> None:
    trunk = made(family)
    kinds = ("classification", "multilabel", "regression", "relevance")
    for reading, layers, kind in itertools.product(POOLINGS, (0, 1, 2), kinds):
        for pooling in POOLINGS[reading]:
            sort = {"reading": reading, "fork": DEPTH - 2, "layers": layers, "kind": kind, "pooling": pooling}
            unit = {"mean": 3.0, "std": 2.0} if kind == "regression" else {}
            branch = random_branch(trunk, "task", **sort, **unit)
            inputs = batch(branch)
            reference = expected(branch, trunk, inputs)
            found = forms(branch, trunk.encoder)
            assert found.keys() == applicable(branch), sort
            for name, form in found.items():
                with torch.inference_mode():
                    check(form(*inputs), reference, (name, sort))


@pytest.mark.parametrize("family", sorted(LATENTS))
@pytest.mark.parametrize("reading", POOLINGS)
def test_latents_read_the_states_in_an_exact_form(made: Make, family: str, reading: str) -> None:
    trunk = made(family)
    for layers, crossing, latents in ((1, 1, 1), (2, 1, 4), (2, 2, 3)):
        sort = {"layers": layers, "crossing": crossing, "latents": latents, "pooling": "latents", "fork": 1}
        branch = random_branch(trunk, "task", reading=reading, **sort)
        inputs = batch(branch)
        reference = expected(branch, trunk, inputs)
        found = forms(branch, trunk.encoder)
        assert found.keys() == {"plain", "absorbed"}
        for name, form in found.items():
            with torch.inference_mode():
                check(form(*inputs), reference, (name, sort))


def test_tagging_stays_plain_and_finite(made: Make) -> None:
    trunk = made("bert")
    branch = random_branch(trunk, "task", kind="tagging", fork=1, layers=1)
    inputs = batch(branch)
    found = forms(branch, trunk.encoder)
    assert found.keys() == {"plain"}
    with torch.inference_mode():
        check(found["plain"](*inputs), expected(branch, trunk, inputs), "plain")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("distilbert", {"activation": "relu"}),
        ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "hidden_activation": "silu"}),
        ("deberta", {"relative_attention": False}),
        ("deberta", {"pos_att_type": ["p2c"]}),
        ("deberta", {"pos_att_type": ["c2p"], "max_relative_positions": 5}),
        ("deberta-v2", {"relative_attention": False}),
        ("deberta-v2", {"share_att_key": False}),
        ("deberta-v2", {"share_att_key": False, "pos_att_type": "p2c"}),
        ("deberta-v2", {"pos_att_type": "c2p", "max_relative_positions": 6}),
        ("deberta-v2", {"position_buckets": -1, "max_relative_positions": 5}),
    ],
    ids=str,
)
def test_activations_norms_biases_and_positions_are_those_of_the_layer(
    made: Make, family: str, changes: dict[str, Any]
) -> None:
    trunk = made(family, **changes)
    for fork in (1, 2):
        branch = random_branch(trunk, "task", reading="separate", pooling="cls", fork=fork, layers=1)
        inputs = batch(branch, tokens=13)
        reference = expected(branch, trunk, inputs)
        found = forms(branch, trunk.encoder)
        assert found.keys() == ALL
        for name, form in found.items():
            with torch.inference_mode():
                check(form(*inputs), reference, name)


def test_the_convolution_of_debertas_first_layer_keeps_it_plain(made: Make) -> None:
    first = {"fork": 0, "layers": 1}
    trunk = made("deberta-v2")
    branch = random_branch(trunk, "task", **first)
    assert forms(branch, trunk.encoder).keys() == {"plain"}
    assert forms(random_branch(trunk, "task", fork=0, layers=2), trunk.encoder).keys() == ALL
    with pytest.raises(ValueError, match="needs more than position 0"):
        absorbed(branch, trunk.encoder)
    without = made("deberta-v2", conv_kernel_size=0)
    branch = random_branch(without, "task", **first)
    inputs = batch(branch)
    with torch.inference_mode():
        check(absorbed(branch, without.encoder)(*inputs), expected(branch, without, inputs), "absorbed")


def test_talking_heads_stay_plain(made: Make) -> None:
    trunk = made("deberta", talking_head=True)
    assert forms(random_branch(trunk, "task", fork=1, layers=1), trunk.encoder).keys() == {"plain"}


def test_a_form_that_does_not_apply_is_refused(made: Make) -> None:
    trunk = made("bert")
    mean = random_branch(trunk, "task", pooling="mean", layers=1)
    for make in (cls_only, absorbed):
        with pytest.raises(ValueError, match="needs more than position 0"):
            make(mean, trunk.encoder)
    with pytest.raises(ValueError, match="no layer to absorb"):
        absorbed(random_branch(trunk, "task", layers=0), trunk.encoder)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_dropout_is_off_in_a_branch_fresh_from_training(made: Make, family: str) -> None:
    trunk = made(family, **({"mlp_dropout": 0.5} if family == "modernbert" else {}))
    branch = random_branch(trunk, "task", fork=1, layers=2)
    inputs = batch(branch)
    reference = expected(branch, trunk, inputs)
    for name in sorted(ALL):
        branch.train()
        with torch.inference_mode():
            check(forms(branch, trunk.encoder)[name](*inputs), reference, name)


MATMULS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm}


class Matmuls(TorchDispatchMode):
    """Notes the types of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in MATMULS:
            self.types |= {argument.dtype for argument in args if isinstance(argument, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_bfloat16_states_are_multiplied_as_bfloat16(made: Make, family: str) -> None:
    trunk = made(family)
    branch = random_branch(trunk, "task", fork=1, layers=1)
    inputs = batch(branch)
    with torch.inference_mode():
        wide = {name: form(*inputs) for name, form in forms(branch, trunk.encoder).items()}
    branch = branch.to(torch.bfloat16)
    narrow = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in inputs]
    for name in ("cls_only", "absorbed"):
        form = forms(branch, trunk.encoder)[name].to(torch.bfloat16)
        with torch.no_grad(), Matmuls() as seen:  # no_grad takes products apart, inference_mode does not
            logits = form(*narrow)
        assert seen.types == {torch.bfloat16}
        assert logits.dtype is torch.bfloat16
        assert (logits.float() - wide[name]).abs().max() <= 0.05 * wide[name].abs().max().clamp(min=1)


@pytest.fixture(scope="module")
def attention(made: Make) -> Any:
    """A full layer's attention."""
    return made("bert").encoder.layers[1].attention.self


@settings(max_examples=60)
@given(data=st.data())
def test_attention_of_few_queries_equals_the_full_layer(attention: Any, data: st.DataObject) -> None:
    rows, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    few = data.draw(st.integers(1, tokens))
    masks = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    mask = torch.tensor([data.draw(masks) for _ in range(rows)])
    states = torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    heads, key, value = attention.num_attention_heads, attention.key, attention.value
    with torch.inference_mode():
        full = attention(states, attention_mask=mask[:, None, None, :])[0][:, :few]  # (B, m, H)
        for keys, values in itertools.product(
            (PlainKeys(key, attention.scaling), AbsorbedKeys(key, heads, attention.scaling)),
            (PlainValues(value), AbsorbedValues(value, heads)),
        ):
            found = FewQueries(attention.query, keys, values, heads)(states[:, :few], states, mask)
            assert found.shape == full.shape
            assert (found - full).abs().max() <= EXACT * full.abs().max().clamp(min=1)


def test_cheap_forms_leave_out_the_work_on_other_positions(made: Make) -> None:
    trunk = made("bert", hidden_size=384, num_attention_heads=12, intermediate_size=4 * 384)
    branch = random_branch(trunk, "task", fork=1, layers=1)
    inputs = [torch.randn(2, 32, 384), torch.ones(2, 32, dtype=torch.bool)]
    flops = {}
    for name, form in forms(branch, trunk.encoder).items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            form(*inputs)
        flops[name] = counter.get_total_flops()
    assert flops["absorbed"] < 0.05 * flops["plain"]
    assert flops["cls_only"] < 0.25 * flops["plain"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_trace_holds_for_other_shapes_and_masks(made: Make, family: str) -> None:
    trunk = made(family)
    for layers, reading in ((0, "separate"), (1, "separate"), (2, "single")):
        branch = random_branch(trunk, "task", reading=reading, pooling="cls", fork=1, layers=layers)
        inputs = batch(branch, rows=6, tokens=11, seed=1)
        reference = expected(branch, trunk, inputs)
        example = tuple(batch(branch, rows=2, tokens=4))
        for name, form in forms(branch, trunk.encoder).items():
            if name != "plain":
                check(traced(form, example)(*inputs), reference, (name, layers, reading))


@torch.no_grad()
def traced(form: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on tracing as such
        return torch.jit.trace(form, example, check_trace=False)


@pytest.mark.parametrize(
    ("family", "name", "sort"),
    [
        ("bert", "plain", {"reading": "single", "layers": 1}),
        ("bert", "cls_only", {"reading": "separate", "layers": 0}),
        ("bert", "absorbed", {"reading": "separate", "layers": 1, "kind": "regression", "mean": 3.0, "std": 2.0}),
        ("distilbert", "cls_only", {"reading": "joint", "layers": 1}),
        ("mpnet", "absorbed", {"reading": "separate", "layers": 1}),
        ("modernbert", "absorbed", {"reading": "separate", "layers": 1}),
        ("deberta", "absorbed", {"reading": "separate", "layers": 1}),
        ("deberta-v2", "absorbed", {"reading": "separate", "layers": 1}),
    ],
    ids=str,
)
def test_a_form_converted_to_openvino_computes_the_same(
    made: Make, family: str, name: str, sort: dict[str, Any]
) -> None:
    ov = pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError).ov
    trunk = made(family)
    branch = random_branch(trunk, "task", **{"pooling": "cls", "fork": 1, **sort})
    example = tuple(batch(branch, rows=2, tokens=4))
    shapes = [
        ([-1, -1, *tensor.shape[2:]], ov.Type.f32 if tensor.is_floating_point() else ov.Type.boolean)
        for tensor in example
    ]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ov.convert_model(forms(branch, trunk.encoder)[name], example_input=example, input=shapes)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    for rows, tokens in ((6, 11), (1, 20)):
        inputs = batch(branch, rows=rows + 1, tokens=tokens, seed=tokens)
        found = torch.from_numpy(compiled([tensor.numpy() for tensor in inputs])[0])
        check(found, expected(branch, trunk, inputs), (rows, tokens))


@given(seed=st.integers(0, 1000), rows=st.integers(1, 3), tokens=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_the_fast_form_of_an_exit_says_the_same(seed: int, rows: int, tokens: int) -> None:
    torch.manual_seed(seed)
    made = new_exit(Form.ATTENTION, WIDTH, 3, tokens=False).eval()
    for weight in made.parameters():
        weight.data.normal_(std=0.5)
    states, mask = torch.randn(rows, tokens, WIDTH), torch.rand(rows, tokens) < 0.7
    mask[:, 0] = True
    with torch.no_grad():
        torch.testing.assert_close(fast_exit(made)(states, mask), made(states, mask), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("form", "tokens"), [(Form.LINEAR, False), (Form.LINEAR, True), (Form.ATTENTION, True)])
def test_an_exit_that_has_no_fast_form_is_used_as_it_is(form: Form, tokens: bool) -> None:
    made = new_exit(form, WIDTH, 3, tokens=tokens)
    assert fast_exit(made) is made
