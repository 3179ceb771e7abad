"""Tiny encoders with random weights, as folders that any test can name in `encoder = "<path>"`."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# Tensors this small only wait for a second thread.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

_PADDED_WITH_ONE = ("mpnet", "roberta", "xlm-roberta")  # these count positions from the padding id on
_WORDS = """
a about after all alarm album am an and any are at bad be book but buy by call can cheap city day did do does down eat
family film find fine food for from get go good great had has hate have he hello help her here him his hot how i in is
it like list local love make me meet more movie music my near never new next nice night no not now of off on one open
or order our out party pay play please poor rain read remind restaurant sad say send set she show slow some song stop
table than thank that the their them then there they this time to today tomorrow too turn two up very want was we
weather week were what when where which who why will with work would yes you your
"""


def tiny_tokenizer(family: str = "bert") -> Tokenizer:
    """A lower-casing WordPiece tokenizer: common words, then any English text letter by letter."""
    special = ["[UNK]", "[PAD]"] if family in _PADDED_WITH_ONE else ["[PAD]", "[UNK]"]
    special += ["[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "##s", "##ed", "##ing", "##er", "##ly"]
    pieces += [*string.punctuation, *(word for word in _WORDS.split() if len(word) > 1)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def tiny_config(family: str, *, layers: int = 4, width: int = 32, vocabulary: int) -> dict[str, Any]:
    """Keyword arguments of the family's transformers config, small in every direction."""
    if family == "distilbert":
        shape = {"dim": width, "n_layers": layers, "n_heads": 4, "hidden_dim": 2 * width}
    else:
        shape = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * width,
        }
    special = {
        "electra": {"embedding_size": width // 2},
        "mpnet": {"pad_token_id": 1},
        "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
        "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
        "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        "deberta-v2": {  # as DeBERTa-v3 is configured, with the convolution of the large DeBERTa-v2 besides
            "relative_attention": True,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "conv_kernel_size": 3,
            "type_vocab_size": 0,
        },
        "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    }
    tokens = {"vocab_size": vocabulary, "max_position_embeddings": 516, "pad_token_id": 0}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    return {**tokens, **ends, **shape, **special.get(family, {})}


def tiny_encoder(folder: Path, family: str = "bert", *, layers: int = 4, width: int = 32, seed: int = 0) -> Path:
    """Write an encoder of `family` with random weights and return its folder. Leaves torch's random state alone."""
    from transformers import AutoConfig, AutoModel

    tokenizer = tiny_tokenizer(family)
    options = tiny_config(family, layers=layers, width=width, vocabulary=tokenizer.get_vocab_size())
    config = AutoConfig.for_model(family, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            # Wider than the usual start, so that states differ clearly between layers, tokens and positions.
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    config.to_json_file(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
