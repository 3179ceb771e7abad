"""Masked words: an encoder learns to tell them, and only words are masked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_encoder

from trunkline.errors import EncoderError
from trunkline.model.encoders import Encoder
from trunkline.training.masking import MaskedWords

TEXTS = ["play the next song", "please stop the music now", "will it rain in the city tomorrow", "no"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_the_loss_falls_to_what_the_texts_leave_open(tmp_path: Path, family: str) -> None:
    encoder = Encoder.load(tiny_encoder(tmp_path / family, family, layers=2)).requires_grad_(True)
    torch.manual_seed(0)
    words = MaskedWords(encoder, encoder.tokenize(TEXTS))
    parameters = [*encoder.parameters(), *words.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(150):
        loss = words(range(len(TEXTS)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_the_same_generator_masks_the_same_words(tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_encoder(tmp_path / "encoder", layers=2))
    words = MaskedWords(encoder, encoder.tokenize(TEXTS)).eval()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(float(words([0, 1, 2, 3])))
    assert found[0] == found[1] != found[2]


def test_special_tokens_are_never_masked(tmp_path: Path) -> None:
    """The embeddings of [CLS] and [SEP] as targets: the loss does not read them, so it cannot change with them."""
    encoder = Encoder.load(tiny_encoder(tmp_path / "encoder", layers=2))
    words = MaskedWords(encoder, encoder.tokenize(["no", "yes"])).eval()
    seen: list[torch.Tensor] = []
    run = encoder.hidden_states
    encoder.hidden_states = lambda batch: (seen.append(batch.ids.clone()), run(batch))[1]  # type: ignore[method-assign]
    for _ in range(20):
        with torch.no_grad():
            words([0, 1])
    plain = encoder.collate(encoder.tokenize(["no", "yes"]))
    for ids in seen:
        assert (ids[:, 0] == plain.ids[:, 0]).all()
        assert (ids[:, 2] == plain.ids[:, 2]).all()


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "encoder", layers=1)
    text = (tmp_path / "encoder" / "tokenizer.json").read_text().replace("[MASK]", "[HIDE]")
    (tmp_path / "encoder" / "tokenizer.json").write_text(text)
    encoder = Encoder.load(tmp_path / "encoder")
    with pytest.raises(EncoderError, match="no mask token"):
        MaskedWords(encoder, encoder.tokenize(["no"]))
