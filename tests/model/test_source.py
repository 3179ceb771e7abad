"""Finding an encoder: the packaged one, folders and hub names; what is refused, and in what words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_encoder

from trunkline.errors import EncoderError, MissingExtra
from trunkline.model.encoders import Encoder
from trunkline.model.source import FAMILIES, MINILM_PACKAGE, MINILM_SHA256, files, resolve

needs_minilm = pytest.mark.skipif(find_spec(MINILM_PACKAGE) is None, reason="the extra [quickstart] is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("source") / "tiny", layers=2)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that a test may spoil: `tmp_path / "encoder"`."""
    return Path(shutil.copytree(tiny, tmp_path / "encoder"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@needs_minilm
def test_minilm_is_the_published_file_and_resolves_without_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from trunkline.model.source import resolve
source = resolve("minilm", None, Path({str(tmp_path)!r}))
assert (source.family, source.depth, source.width, source.max_positions) == ("bert", 6, 384, 512), source
assert len(source.fingerprint) == 64
heavy = [name for name in ("torch", "transformers", "sentence_transformers", {MINILM_PACKAGE!r}) if name in sys.modules]
assert not heavy, heavy
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_minilm
def test_minilm_loads_and_reads_a_text() -> None:
    source = resolve("minilm", None, Path())
    encoder = Encoder.load(source.path)
    assert (encoder.depth, encoder.width, encoder.reader.max_positions) == (
        source.depth,
        source.width,
        source.max_positions,
    )
    (row,) = encoder.tokenize(["Hello, world"])
    assert row.ids == [101, 7592, 1010, 2088, 102]


def fake_package(tmp_path: Path, tiny: Path) -> Path:
    package = tmp_path / "site" / MINILM_PACKAGE
    shutil.copytree(tiny, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    return package.parent


def test_a_packaged_trunk_with_a_wrong_hash_is_refused(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(fake_package(tmp_path, tiny))
    found = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(EncoderError) as refusal:
        resolve("minilm", None, tmp_path)
    message = str(refusal.value)
    assert "is not the published file" in message
    assert found in message
    assert MINILM_SHA256 in message
    assert "pip install" in message


def test_the_packaged_trunk_absent_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[quickstart\]'"):
        resolve("minilm", None, tmp_path)


def test_a_folder_is_found_relative_to_the_project(folder: Path, tmp_path: Path) -> None:
    relative = resolve("encoder", None, tmp_path)
    assert relative.path == folder
    assert (relative.family, relative.depth, relative.width, relative.max_positions) == ("bert", 2, 32, 516)
    assert resolve(str(folder), None, tmp_path / "elsewhere").fingerprint == relative.fingerprint
    assert resolve("./encoder", None, tmp_path).fingerprint == relative.fingerprint


def test_a_copy_of_its_files_is_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in files(folder):
        shutil.copy(path, tmp_path / "copy")
    (folder / "README.md").write_text("says nothing about the encoder")
    assert resolve("copy", None, tmp_path).fingerprint == resolve("encoder", None, tmp_path).fingerprint
    Encoder.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_byte_in_any_file_changes_the_fingerprint(folder: Path, tmp_path: Path, name: str) -> None:
    before = resolve("encoder", None, tmp_path).fingerprint
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data + b" ")
    assert resolve("encoder", None, tmp_path).fingerprint != before
    (folder / name).write_bytes(data)
    assert resolve("encoder", None, tmp_path).fingerprint == before


def test_hashes_are_remembered_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "state" / "hashes.json"
    first = resolve("encoder", None, tmp_path, cache)
    remembered = cache.read_bytes()
    assert resolve("encoder", None, tmp_path, cache) == first
    assert cache.read_bytes() == remembered

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert resolve("encoder", None, tmp_path, cache).fingerprint == resolve("encoder", None, tmp_path).fingerprint
    assert resolve("encoder", None, tmp_path, cache).fingerprint != first.fingerprint


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": 1}', b'{"x": [1, 2]}', b"\xff"])
def test_a_damaged_hash_cache_is_rebuilt(folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "hashes.json"
    cache.write_bytes(content)
    assert resolve("encoder", None, tmp_path, cache) == resolve("encoder", None, tmp_path)
    assert str(folder / "model.safetensors") in json.loads(cache.read_bytes())


def test_albert_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, model_type="albert")
    with pytest.raises(
        EncoderError, match=r"'albert' cannot be a trunk: ALBERT shares one group of layers.*modernbert"
    ):
        resolve("encoder", None, tmp_path)
    with pytest.raises(EncoderError, match="ALBERT shares one group of layers"):
        Encoder.load(folder)


def test_an_unknown_family_is_answered_with_the_supported_ones(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, model_type="gpt2")
    with pytest.raises(EncoderError) as refusal:
        resolve("encoder", None, tmp_path)
    assert "family 'gpt2' is not supported" in str(refusal.value)
    assert all(family in str(refusal.value) for family in FAMILIES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "names no model_type"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": None}, "hidden_size must be a whole number of at least 1, found None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, found 0"),
        ({"hidden_size": "wide"}, "hidden_size must be .* found 'wide'"),
        ({"max_position_embeddings": True}, "max_position_embeddings must be .* found True"),
    ],
)
def test_a_config_that_cannot_be_a_trunk_says_why(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(EncoderError, match=message):
        resolve("encoder", None, tmp_path)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for load in (lambda: resolve("encoder", None, tmp_path), lambda: Encoder.load(folder)):
        with pytest.raises(EncoderError, match=r"Pickled weights \(pytorch_model.bin\) are refused"):
            load()


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "pytorch_model.bin", "absent.safetensors", 3]
)
def test_a_shard_index_cannot_name_files_outside_the_folder(folder: Path, tmp_path: Path, shard: object) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(EncoderError, match="names a file that is not there, or is not safetensors beside it"):
        resolve("encoder", None, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_shard_index_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(EncoderError, match=r"index\.json cannot be read"):
        resolve("encoder", None, tmp_path)


def test_a_folder_without_a_config_or_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(EncoderError, match="has no tokenizer"):
        resolve("encoder", None, tmp_path)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(EncoderError, match=r"config\.json cannot be read"):
        resolve("encoder", None, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"is not an encoder: it has no config\.json"):
        resolve("encoder", None, tmp_path)


@pytest.mark.parametrize(
    "name", ["./absent", "../absent", "/absent/encoder", "a/b/c", "models/two words", "~nobody/x", "x/" * 3000, ""]
)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderError, match=r"no such folder|is not an encoder"):
        resolve(name, None, tmp_path)


@pytest.mark.parametrize("name", ["someone/some-encoder", "bert-base-uncased", "minilmm"])
def test_a_hub_name_without_a_hub_says_so(tmp_path: Path, name: str) -> None:
    code = f"""
from pathlib import Path
from trunkline.errors import EncoderError
from trunkline.model.source import resolve
try:
    resolve({name!r}, "main", Path({str(tmp_path)!r}))
except EncoderError as error:
    print(error)
"""
    done = run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert f"encoder '{name}' is neither 'minilm', nor a folder in {tmp_path}" in done.stdout
    assert "nor could it be fetched from the hub" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["minilm", "encoder"])
def test_a_revision_of_something_that_has_none_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderError, match="'main' means nothing"):
        resolve(name, "main", tmp_path)
