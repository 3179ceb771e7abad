"""Encoders of every family: parity with the full transformers model, own layers, tokens, save and load."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_encoder
from torch import Tensor

from trunkline.errors import EncoderError
from trunkline.model.encoders import Encoder
from trunkline.model.families import FAMILIES
from trunkline.model.source import FAMILIES as SUPPORTED
from trunkline.model.tokens import TokenBatch

TEXTS = ["book a table for two", "rain", "please play the new album by that band, it was great, and then stop"]
PAIRS = ["find a cheap restaurant near me today", "what will the weather be", "ok"]

every_family = pytest.mark.parametrize("family", SUPPORTED)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {family: tiny_encoder(root / family, family, layers=3) for family in SUPPORTED}


def padded_batch(encoder: Encoder) -> TokenBatch:
    batch = encoder.collate(encoder.tokenize(TEXTS, PAIRS))
    assert not batch.mask.all(), "the batch must hold padding for the test to mean anything"
    return batch


def full_model(folder: Path, batch: TokenBatch) -> tuple[Tensor, ...]:
    """Every layer's states from the model that transformers itself loads and runs."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1 and model.config.model_type not in ("mpnet", "modernbert"):
        inputs["token_type_ids"] = batch.types
    with torch.no_grad():
        states: tuple[Tensor, ...] = model(**inputs, output_hidden_states=True).hidden_states
    return states


def difference(one: Tensor, other: Tensor, mask: Tensor) -> float:
    return float((one - other)[mask].abs().max())


def test_the_seam_and_the_list_of_supported_families_agree() -> None:
    assert tuple(sorted(FAMILIES)) == SUPPORTED


@every_family
@torch.no_grad()
def test_states_at_every_layer_equal_the_full_transformers_model(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family])
    batch = padded_batch(encoder)
    expected = full_model(folders[family], batch)
    found = encoder.hidden_states(batch)
    found[-1] = encoder.final_norm()(found[-1]) if family == "modernbert" else found[-1]
    assert len(found) == len(expected) == 4
    for depth, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert difference(ours, theirs, batch.mask) <= 1e-5, f"after {depth} layers"
        assert depth == 0 or difference(ours, found[depth - 1], batch.mask) > 1e-2, f"layer {depth} did nothing"


@every_family
@torch.no_grad()
def test_a_branch_runs_its_own_copy_of_a_layer(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family])
    batch = padded_batch(encoder)
    expected = encoder.hidden_states(batch)
    own = encoder.copy_layers(1, 3)
    context = encoder.context(batch.mask, torch.float32)
    states = expected[1]
    for index, layer in enumerate(own, start=1):
        states = encoder.run(layer, index, states, context)
    assert torch.equal(states, expected[3])

    for parameter in own.parameters():
        parameter.add_(1.0)
    assert torch.equal(encoder.hidden_states(batch)[3], expected[3]), "the copy shares weights with the encoder"
    assert not torch.equal(encoder.run(own[0], 1, expected[1], context), expected[2])


@every_family
@torch.no_grad()
def test_a_light_encoder_runs_the_layers_that_it_was_given(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    encoder = Encoder.load(folders[family])
    batch = padded_batch(encoder)
    light = encoder.light([0, 2])
    states = encoder.hidden_states(batch)[:2]
    states.append(encoder.run(encoder.layers[2], 1, states[1], encoder.context(batch.mask, torch.float32)))
    light.save(tmp_path)
    for one in (light, Encoder.load(tmp_path)):
        found = one.hidden_states(batch)
        assert one.depth == len(found) - 1 == 2
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, states, strict=True))
    later = encoder.light([1]).hidden_states(batch)[1]
    assert later.isfinite().all()
    for parameter in light.parameters():
        parameter.add_(1.0)
    assert torch.equal(encoder.hidden_states(batch)[1], states[1]), "the copy shares weights with the encoder"


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [3], [-1]])
def test_layers_that_do_not_rise_or_are_not_there_make_no_encoder(folders: dict[str, Path], layers: list[int]) -> None:
    with pytest.raises(ValueError, match="of an encoder with 3"):
        Encoder.load(folders["bert"]).light(layers)


@every_family
def test_a_branch_layer_can_be_trained_while_the_encoder_is_frozen(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family]).requires_grad_(False)
    batch = padded_batch(encoder)
    own = encoder.copy_layers(0, 2)
    states = encoder.embed(batch.ids, batch.types, batch.mask)
    context = encoder.context(batch.mask, states.dtype)
    for index, layer in enumerate(own):
        states = encoder.run(layer, index, states, context)
    states[batch.mask].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in own.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@every_family
def test_random_layers_are_drawn_anew_by_the_familys_rule(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family])
    torch.manual_seed(1)
    first = encoder.copy_layers(0, 2, random=True)
    torch.manual_seed(1)
    again = encoder.copy_layers(0, 2, random=True)
    trained = dict(encoder.copy_layers(0, 2).named_parameters())
    for (name, one), other in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), "the same seed gives the same layers"
        assert not torch.equal(one, trained[name]), f"{name} still holds the encoder's weights"
        if one.dim() == 1:  # biases start at zero, norms at one
            assert one.unique().tolist() in ([0.0], [1.0]), name
        else:
            assert 0.001 < one.detach().std() < 0.03, name
            assert one.detach().mean().abs() < 0.005, name


@every_family
def test_save_and_load_round_trip_bit_exactly(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    encoder = Encoder.load(folders[family])
    encoder.tokenize(TEXTS, max_tokens=7)  # a setting of one call must not be saved
    encoder.save(tmp_path / "one")
    again = Encoder.load(tmp_path / "one")
    again.save(tmp_path / "two")
    batch = padded_batch(encoder)
    with torch.no_grad():
        states = zip(encoder.hidden_states(batch), again.hidden_states(padded_batch(again)), strict=True)
    assert all(torch.equal(one, other) for one, other in states)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@every_family
@torch.no_grad()
def test_two_padded_texts_side_by_side_do_not_depend_on_their_padding(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family])

    def joined(texts: list[str], pairs: list[str]) -> Tensor:
        """States of the first row's real tokens after two layers over both texts' states: (tokens, H)."""
        batches = [encoder.collate(encoder.tokenize(side)) for side in (texts, pairs)]
        states = torch.cat([encoder.embed(batch.ids, batch.types, batch.mask) for batch in batches], dim=1)
        mask = torch.cat([batch.mask for batch in batches], dim=1)
        context = encoder.context(mask, states.dtype)
        for index, layer in enumerate(encoder.copy_layers(0, 2)):
            states = encoder.run(layer, index, states, context)
        return states[0][mask[0]]

    alone = joined(TEXTS[:1], PAIRS[:1])
    beside_longer = joined(TEXTS, PAIRS)
    assert torch.allclose(alone, beside_longer, atol=1e-5)


@every_family
def test_layers_train_under_bfloat16_autocast(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family]).requires_grad_(False)
    batch = padded_batch(encoder)
    expected = encoder.hidden_states(batch)[-1]
    own = encoder.copy_layers(0, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = encoder.embed(batch.ids, batch.types, batch.mask)
        context = encoder.context(batch.mask, states.dtype)
        for index, layer in enumerate(own):
            states = encoder.run(layer, index, states, context)
        states[batch.mask].float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in own.parameters())
    off = (states.detach().float() - expected)[batch.mask].abs().mean()
    assert off < 0.05 * expected[batch.mask].std()


@every_family
def test_loading_is_silent_and_draws_no_random_numbers(
    folders: dict[str, Path], family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    state = torch.get_rng_state()
    Encoder.load(folders[family])
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


@every_family
def test_a_checkpoint_with_a_head_and_older_names_loads_as_its_bare_encoder(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    bare = Encoder.load(folders[family])
    prefix = bare.model.base_model_prefix
    weights = load_file(folders[family] / "model.safetensors")
    old = {
        f"{prefix}.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for name, w in weights.items()
    }
    shutil.copytree(folders[family], tmp_path / "old")
    save_file({**old, "classifier.weight": torch.ones(2, 32)}, tmp_path / "old" / "model.safetensors")
    loaded = Encoder.load(tmp_path / "old")
    for one, other in zip(bare.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sharded_and_half_precision_weights_load_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bert"], tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    weights = {name: w.half() for name, w in load_file(folders["bert"] / "model.safetensors").items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, tmp_path / "sharded" / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    encoder = Encoder.load(tmp_path / "sharded")
    for name, tensor in encoder.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].float())


def test_a_copy_of_an_encoder_can_be_trained_as_a_whole(folders: dict[str, Path]) -> None:
    encoder = Encoder.load(folders["bert"]).requires_grad_(False)
    whole = copy.deepcopy(encoder).requires_grad_(True)
    batch = padded_batch(whole)
    whole.hidden_states(batch)[-1].sum().backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    assert not torch.equal(whole.hidden_states(batch)[-1], encoder.hidden_states(batch)[-1])


def test_a_pair_is_cut_at_its_longer_text(folders: dict[str, Path]) -> None:
    encoder = Encoder.load(folders["bert"])
    (row,) = encoder.tokenize(["the " * 40], ["yes you"], max_tokens=16)
    assert len(row) == 16
    assert row.sequence.count(1) == 2
    assert row.sequence.count(0) == 11
    assert row.sequence.count(None) == 3
    assert row.types == [0] * 13 + [1] * 3


def test_threads_with_different_lengths_do_not_disturb_each_other(folders: dict[str, Path]) -> None:
    encoder = Encoder.load(folders["bert"])
    lengths = [5, 9, 17, 33] * 25
    with ThreadPoolExecutor(8) as pool:
        rows = pool.map(lambda length: encoder.tokenize(["the " * 40], max_tokens=length), lengths)
    assert [len(row) for (row,) in rows] == lengths


def test_offsets_point_into_each_tokens_own_text(folders: dict[str, Path]) -> None:
    encoder = Encoder.load(folders["bert"])
    (row,) = encoder.tokenize(["Play  music"], ["now!"])
    texts = {0: "Play  music", 1: "now!"}
    pieces = [
        texts[side][start:end] for (start, end), side in zip(row.offsets, row.sequence, strict=True) if side is not None
    ]
    assert pieces == ["Play", "music", "now", "!"]
    assert [span for span, side in zip(row.offsets, row.sequence, strict=True) if side is None] == [(0, 0)] * 3


@every_family
def test_tokens_are_the_same_without_offsets(folders: dict[str, Path], family: str) -> None:
    reader = Encoder.load(folders[family]).reader

    @given(texts=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4), joint=st.booleans())
    def check(texts: list[tuple[str, str]], joint: bool) -> None:
        firsts, seconds = [a for a, _ in texts], [b for _, b in texts] if joint else None
        full = reader.tokenize(firsts, seconds, max_tokens=9)
        bare = reader.tokenize(firsts, seconds, max_tokens=9, offsets=False)
        assert [(row.ids, row.types) for row in bare] == [(row.ids, row.types) for row in full]

    check()


def test_offsets_leave_out_the_space_that_sentencepiece_counts_in(folders: dict[str, Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<unk>", -9.0), ("<pad>", -9.0), ("▁hello", -1.0), ("▁world", -1.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    shutil.copytree(folders["xlm-roberta"], tmp_path / "spm")
    tokenizer.save(str(tmp_path / "spm" / "tokenizer.json"))
    (row,) = Encoder.load(tmp_path / "spm").tokenize(["hello  world"])
    assert row.offsets == [(0, 5), (6, 6), (7, 12)]


def test_text_that_no_encoding_can_hold_is_read_all_the_same(folders: dict[str, Path]) -> None:
    encoder = Encoder.load(folders["bert"])
    broken, mended, plain = encoder.tokenize(["play \ud83d music", "play ? music", "play é music"])
    assert broken == mended
    assert plain.offsets == mended.offsets


@pytest.mark.parametrize("limit", [2, 517])
def test_a_length_the_encoder_cannot_read_is_refused(folders: dict[str, Path], limit: int) -> None:
    encoder = Encoder.load(folders["bert"])
    with pytest.raises(EncoderError, match="between 3 and 516 tokens"):
        encoder.tokenize(["yes"], max_tokens=limit)


@every_family
@torch.no_grad()
def test_the_longest_allowed_text_can_be_read(folders: dict[str, Path], family: str) -> None:
    encoder = Encoder.load(folders[family])
    rows = encoder.tokenize(["the " * 600, "yes"], max_tokens=encoder.reader.max_positions)
    assert len(rows[0]) == encoder.reader.max_positions
    batch = encoder.collate(rows)
    assert encoder.hidden_states(batch)[-1][batch.mask].isfinite().all()


def test_a_vocabulary_without_tokenizer_json_is_converted(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bert"], tmp_path / "vocab")
    encoder = Encoder.load(folders["bert"])
    pieces = sorted(encoder.reader.tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n")
    (tmp_path / "vocab" / "tokenizer.json").unlink()
    (tmp_path / "vocab" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert Encoder.load(tmp_path / "vocab").tokenize(TEXTS, PAIRS) == encoder.tokenize(TEXTS, PAIRS)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lack_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors")


def halve_the_file(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def test_code_named_in_a_config_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bert"], tmp_path / "code")
    (tmp_path / "code" / "hostile.py").write_text("raise SystemExit('the code of a checkpoint was run')")
    edit_config(tmp_path / "code", auto_map={"AutoModel": "hostile.Model", "AutoConfig": "hostile.Config"})
    Encoder.load(tmp_path / "code")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lack_a_tensor, r"the weights lack 1 of the encoder's tensors: encoder\.layer\.1\.output\.dense\.weight"),
        (halve_the_file, "cannot be read as safetensors"),
        (lambda folder: edit_config(folder, intermediate_size=48), r"shape \(64,\), config.json says \(48,\)"),
        (lambda folder: edit_config(folder, num_attention_heads=5), "this bert config cannot be built"),
        (lambda folder: edit_config(folder, vocab_size=20), r"config.json says \(20, 32\)"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
    ],
)
def test_damaged_files_are_refused_by_name(folders: dict[str, Path], tmp_path: Path, damage: Any, message: str) -> None:
    shutil.copytree(folders["bert"], tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(EncoderError, match=message):
        Encoder.load(tmp_path / "damaged")
