"""Foreign classifiers answer as transformers' own models do, and what is no whole classifier is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import tiny_classifier
from tiny import tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from trunkline.errors import EncoderError
from trunkline.model.classifiers import Classifier
from trunkline.model.foreign import CLASSIFIERS, find_classifier

LABELS = ("weather", "alarm", "music")
TEXTS = ["wake me at seven", "no", "will it rain in the city today"]
PAIRS = ["set an alarm for me", "play some music please", "not now"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier") / "bert", LABELS)


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("tokens", [False, True])
def test_outputs_are_those_of_transformers_row_by_row(tmp_path: Path, family: str, tokens: bool) -> None:
    """Each row alone through the plain model, without padding: batches and their masks change nothing."""
    tiny_classifier(tmp_path / family, LABELS, family, tokens=tokens)
    source = find_classifier(family, tmp_path)
    assert (source.outputs, source.per_token) == (LABELS, tokens)
    classifier = Classifier(source)
    of = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    plain = of.from_pretrained(tmp_path / family).eval()
    typed = getattr(plain.config, "type_vocab_size", 0) > 1
    for pairs in (None, PAIRS):
        rows = classifier.reader.tokenize(TEXTS, pairs, 128)
        found = classifier.outputs(rows)
        for row, outputs in zip(rows, found, strict=True):
            types = {"token_type_ids": torch.tensor([row.types])} if typed else {}
            with torch.no_grad():
                [wanted] = plain(input_ids=torch.tensor([row.ids]), **types).logits.numpy()
            assert (outputs[: len(row)] if tokens else outputs) == pytest.approx(wanted, abs=1e-4)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _edited(**keys: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **keys}))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "no such folder"),
        (_no_config, "has no config.json"),
        (_pickled, "Pickled weights"),
        (_edited(model_type="gpt2"), "family 'gpt2' is not supported"),
        (_edited(architectures=["BertForMaskedLM"]), "no classifier of texts"),
        (_edited(architectures=None), "no classifier of texts"),
        (_edited(id2label={"0": "a", "2": "b"}), "id2label must name outputs"),
        (_edited(id2label=["a", "b"]), "id2label must name outputs"),
        (_edited(problem_type=3), "problem_type must be a name"),
    ],
)
def test_what_is_no_classifier_is_said_when_it_is_found(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(EncoderError, match=said):
        find_classifier("copy", tmp_path)


def test_weights_without_a_head_are_refused_rather_than_drawn(tmp_path: Path) -> None:
    bare = tiny_encoder(tmp_path / "bare")
    _edited(architectures=["BertForSequenceClassification"])(bare)
    with pytest.raises(EncoderError, match="the weights lack 2 of the classifier's tensors: classifier"):
        Classifier(find_classifier("bare", tmp_path))


def test_another_number_of_labels_than_the_weights_have_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    _edited(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})(copy)
    with pytest.raises(EncoderError, match=r"classifier\.\w+ has shape \(3,.*\), config\.json says \(2,"):
        Classifier(find_classifier("copy", tmp_path))


def test_a_folder_counts_by_its_content(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert find_classifier("copy", tmp_path).fingerprint == find_classifier(str(folder), tmp_path).fingerprint
    _edited(id2label={"0": "alarm", "1": "weather", "2": "music"})(copy)
    assert find_classifier("copy", tmp_path).fingerprint != find_classifier(str(folder), tmp_path).fingerprint


def test_loading_draws_nothing(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = Classifier(find_classifier(str(folder), folder))
    assert torch.equal(torch.get_rng_state(), before)
    rows = first.reader.tokenize(TEXTS, None, 128)
    assert np.array_equal(first.outputs(rows), Classifier(first.source).outputs(rows))


def test_code_and_pickles_of_a_folder_are_left_alone(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    classes = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    _edited(auto_map=classes)(copy)
    (copy / "own.py").write_text("raise AssertionError('this was run')")
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    rows = Classifier(find_classifier("copy", tmp_path)).reader.tokenize(TEXTS, None, 128)
    found = Classifier(find_classifier("copy", tmp_path)).outputs(rows)
    assert np.array_equal(found, Classifier(find_classifier(str(folder), tmp_path)).outputs(rows))
