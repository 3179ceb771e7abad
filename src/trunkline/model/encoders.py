"""One encoder of any supported family, layer by layer, with its tokenizer: the seam to transformers.

Reads and writes folders of safetensors and JSON, and nothing else: no pickle, no remote code, no network. Knows
nothing of branches, heads or training; a branch brings its own copies of layers and runs them here.

B: rows, T: tokens, H: width of a state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from trunkline.errors import EncoderError
from trunkline.model.families import FAMILIES, Context, Model
from trunkline.model.reader import TextReader
from trunkline.model.source import CONFIG, TOKENIZER, WEIGHTS, Shape, files, read_shape
from trunkline.model.tokens import TokenBatch, TokenRow


class Encoder(nn.Module):
    """Embeddings and layers of one encoder, each run on its own.

    `depth` counts layers, `width` is H, `reader` its tokenizer.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, shape: Shape) -> None:
        super().__init__()
        self.model = model
        self.reader = TextReader(tokenizer, shape.max_positions, shape.pad_id)
        self.family = shape.family
        self.depth = shape.depth
        self.width = shape.width
        self._seam = FAMILIES[shape.family]

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Load the encoder in the folder `path` in fp32, in eval mode, silently.

        Draws nothing from the random generators. Raises EncoderError.
        """
        shape = read_shape(path)
        model = _build(shape)
        fill(model, files(path), path)
        tokenizer = read_tokenizer(path)
        known = model.get_input_embeddings().num_embeddings
        if tokenizer.get_vocab_size() > known:
            raise EncoderError(
                f"{path}: the tokenizer knows {tokenizer.get_vocab_size()} tokens, the weights only {known}"
            )
        return cls(model, tokenizer, shape).eval()

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's own layers, in order."""
        return self._seam.layers(self.model)

    def embed(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        """The states before the first layer, (B, T, H), of `ids`, `types` and `mask`, each (B, T)."""
        return self._seam.embed(self.model, ids, types, mask)

    def context(self, mask: Tensor, dtype: torch.dtype) -> Context:
        """All that a layer needs besides states of type `dtype`: attention mask, positions, relative embeddings.

        `mask` (B, T) may have padding anywhere, as where two padded texts stand side by side.
        """
        return self._seam.context(self.model, mask, dtype)

    def run(self, layer: nn.Module, index: int, states: Tensor, context: Context) -> Tensor:
        """Run layer `index`, this encoder's or a branch's own copy of it, on states (B, T, H)."""
        return self._seam.run(self.model, layer, index, states, context)

    def hidden_states(self, batch: TokenBatch, depth: int | None = None) -> list[Tensor]:
        """The states before the first layer and after each one, to `depth` or of all: depth + 1 tensors (B, T, H)."""
        states = [self.embed(batch.ids, batch.types, batch.mask)]
        context = self.context(batch.mask, states[0].dtype)
        for index, layer in enumerate(self.layers[:depth]):
            states.append(self.run(layer, index, states[-1], context))
        return states

    def final_norm(self) -> nn.Module:
        """What stands between the last layer and a head: a trainable copy of the norm, Identity where none is."""
        norm = self._seam.final_norm(self.model)
        return nn.Identity() if norm is None else copy.deepcopy(norm).requires_grad_(True)

    def copy_layers(self, start: int, stop: int, *, random: bool = False) -> nn.ModuleList:
        """Trainable copies of layers `start` to `stop` (exclusive), in eval mode.

        `random` draws their weights anew, by the family's own rule, from torch's global generator.
        """
        if not 0 <= start <= stop <= self.depth:
            raise ValueError(f"layers {start} to {stop} of an encoder with {self.depth}")
        # Layers refer to the model's config; one config serves them all.
        memo = {id(self.model.config): self.model.config}
        layers = nn.ModuleList(copy.deepcopy(layer, memo) for layer in self.layers[start:stop])
        if random:
            layers.apply(self.model._init_weights)
        return layers.requires_grad_(True).eval()

    def light(self, layers: Sequence[int]) -> Encoder:
        """A lighter encoder: copies of these layers, in rising order, and of all that is no layer; in eval mode.

        What a layer has only off the first place, as ModernBERT's norm before attention, is left out of the first.
        Raises ValueError where the layers do not rise, or are none of its own.
        """
        if not layers or sorted({*layers} & {*range(self.depth)}) != list(layers):
            raise ValueError(f"layers {list(layers)} of an encoder with {self.depth}")
        settings = self.model.config.to_dict()
        settings["n_layers" if "n_layers" in settings else "num_hidden_layers"] = len(layers)
        if "layer_types" in settings:
            settings["layer_types"] = [settings["layer_types"][layer] for layer in layers]
        reader = self.reader
        shape = Shape(self.family, len(layers), self.width, reader.max_positions, reader.pad_id, settings)
        model = _build(shape)
        place = next(name for name, module in self.model.named_modules() if module is self.layers)
        weights = self.model.state_dict()

        def source(name: str) -> str:
            if not name.startswith(f"{place}."):
                return name
            number, _, rest = name.removeprefix(f"{place}.").partition(".")
            return f"{place}.{layers[int(number)]}.{rest}"

        model.load_state_dict({name: weights[source(name)] for name in model.state_dict()})
        return Encoder(model, reader.tokenizer, shape).eval()

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_tokens: int = 128
    ) -> list[TokenRow]:
        """See `TextReader.tokenize`."""
        return self.reader.tokenize(texts, pairs, max_tokens)

    def collate(self, rows: Sequence[TokenRow]) -> TokenBatch:
        """See `TextReader.collate`."""
        return self.reader.collate(rows)

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json, from which `load` gives this encoder back."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.to_json_file(folder / CONFIG)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        self.reader.save(folder / TOKENIZER)


def _build(shape: Shape) -> Model:
    """The encoder of a config, its weights unset and its pooler left out."""
    from transformers import AutoModel

    model = build(shape, AutoModel, attn_implementation=FAMILIES[shape.family].attention)
    if hasattr(model, "pooler"):
        model.pooler = None  # a branch has a head of its own
    return model


def build(shape: Shape, auto: Any, **options: Any) -> Model:
    """What `auto`, one of the Auto classes of transformers, makes of a config; its weights are unset.

    Raises EncoderError.
    """
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    # auto_map names Python files to run; only this library's own classes are used.
    settings = {key: value for key, value in shape.raw.items() if key not in ("model_type", "auto_map")}
    with _quiet(), no_init_weights():
        try:
            return auto.from_config(AutoConfig.for_model(shape.family, **settings), dtype=torch.float32, **options)
        except Exception as error:  # transformers checks configs with many kinds of errors
            raise EncoderError(f"this {shape.family} config cannot be built: {error}") from error


@torch.no_grad()
def fill(model: Model, paths: Sequence[Path], folder: Path, what: str = "encoder") -> None:
    """Copy every weight of `model`, named `what` in errors, from those of these files of `folder` that are safetensors;
    what it does not have, such as another head, is ignored.

    Raises EncoderError where a weight is missing, or of another shape.
    """
    missing = {_current_name(name, model.base_model_prefix): tensor for name, tensor in model.state_dict().items()}
    for path in (path for path in paths if path.suffix == ".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118  (not a dict)
                    target = missing.pop(_current_name(stored, model.base_model_prefix), None)
                    if target is None:
                        continue
                    tensor = file.get_tensor(stored)
                    if tensor.shape != target.shape:
                        raise EncoderError(
                            f"{path}: {stored} has shape {tuple(tensor.shape)}, config.json says {tuple(target.shape)}"
                        )
                    target.copy_(tensor)
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{path} cannot be read as safetensors: {error}") from None
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise EncoderError(f"{folder}: the weights lack {len(missing)} of the {what}'s tensors: {shown}, …")


def _current_name(stored: str, prefix: str) -> str:
    """A weight's name in the bare encoder: without the model's prefix, and with the norms' newer names."""
    name = stored.removeprefix(f"{prefix}.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            name = name.removesuffix(old) + new
    return name


def read_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a folder, from tokenizer.json or converted from its vocabulary."""
    try:
        if (folder / TOKENIZER).is_file():
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        else:
            from transformers import AutoTokenizer

            with _quiet():
                found: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = found.backend_tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception
        raise EncoderError(
            f"{folder}: the tokenizer cannot be read ({error}). A {TOKENIZER} beside the weights always works"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging while it builds."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
