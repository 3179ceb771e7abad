"""Promise 7: a bundle is data, and exactly the data that its manifest names."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branches import Made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.bundle import Bundle, verify
from trunkline.errors import BundleError


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """A copy of a good bundle, under its own name."""
    return shutil.copytree(made.bundle, tmp_path / made.bundle.name)


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A forged bundle: its manifest changed by hand, and the folder renamed so that its id fits again."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    data = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(data)
    return bundle.rename(bundle.with_name(hashlib.sha256(data).hexdigest()[:16]))


def test_a_good_bundle_verifies_anywhere_under_any_name(copy: Path, tmp_path: Path) -> None:
    manifest = verify(copy)
    assert set(manifest.files()) == {path.relative_to(copy).as_posix() for path in files_of(copy)} - {"manifest.json"}
    renamed = copy.rename(tmp_path / "model")
    (tmp_path / "link").symlink_to(renamed)
    assert verify(renamed) == verify(tmp_path / "link") == manifest
    assert Bundle.load(tmp_path / "link").id == manifest_id(renamed)


def manifest_id(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()[:16]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_promise_7_one_changed_byte_anywhere_is_refused(copy: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(copy)))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        with pytest.raises(BundleError):
            verify(copy)
    finally:
        path.write_bytes(original)
    verify(copy)


def test_promise_7_truncated_longer_and_missing_files_are_refused(copy: Path) -> None:
    for path in files_of(copy):
        original = path.read_bytes()
        for content in (original[:-1], original + b"\0", b""):
            path.write_bytes(content)
            with pytest.raises(BundleError):
                Bundle.load(copy)
        path.unlink()
        with pytest.raises(BundleError):
            Bundle.load(copy)
        path.write_bytes(original)
    verify(copy)


@pytest.mark.parametrize(
    "extra",
    ["run.py", "trunk/pytorch_model.bin", "trunk/modeling.py", "branches/extra.safetensors", ".hidden", "more/file"],
)
def test_promise_7_a_file_that_the_manifest_does_not_name_is_refused(copy: Path, extra: str) -> None:
    (copy / extra).parent.mkdir(exist_ok=True)
    (copy / extra).write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(BundleError, match="not part of the bundle"):
        Bundle.load(copy)


def test_promise_7_an_extra_folder_is_refused(copy: Path) -> None:
    (copy / "trunk" / "onnx").mkdir()
    with pytest.raises(BundleError, match="not part of the bundle"):
        verify(copy)


def test_promise_7_links_and_special_files_are_refused(copy: Path, tmp_path: Path) -> None:
    for path in files_of(copy):
        outside = tmp_path / "outside"
        path.rename(outside)
        path.symlink_to(outside)
        with pytest.raises(BundleError, match=r"is a link|must be a plain file"):
            verify(copy)
        path.unlink()
        outside.rename(path)
    for folder in ("trunk", "branches"):
        (copy / folder).rename(tmp_path / "outside")
        (copy / folder).symlink_to(tmp_path / "outside")
        with pytest.raises(BundleError, match="is a link"):
            verify(copy)
        (copy / folder).unlink()
        (tmp_path / "outside").rename(copy / folder)
    os.mkfifo(copy / "trunk" / "pipe.json")
    with pytest.raises(BundleError, match="neither a file nor a folder"):
        verify(copy)


PATHS = [
    "/etc/passwd",
    "../outside.safetensors",
    "trunk/../../outside.safetensors",
    "trunk/./config.json",
    "trunk//config.json",
    "trunk\\config.json",
    "trunk/a/b.safetensors",
    "trunk/pytorch_model.bin",
    "trunk/weights.pkl",
    "trunk/weights.pt",
    "trunk/modeling.py",
    "trunk/.hidden.json",
    "trunk/config.json\n",
    "trunk/config.json\0",
    "config.json",
    "",
]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_promise_7_no_path_leads_out_of_the_folder_or_to_anything_but_data(
    copy: Path, tmp_path: Path, path: str
) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()

    def name_it(manifest: dict[str, Any]) -> None:
        manifest["trunk"]["files"][path] = digest

    with pytest.raises(BundleError, match=r"not a safetensors, JSON or vocabulary file"):
        Bundle.load(rewrite(copy, name_it))


@pytest.mark.parametrize(
    "path", [*PATHS, "branches/intent.safetensors", "branches/../trunk/model.safetensors"], ids=ascii
)
def test_promise_7_branches_and_probes_have_one_place_each(copy: Path, tmp_path: Path, path: str) -> None:
    def move_branch(manifest: dict[str, Any]) -> None:
        manifest["branches"]["intent"]["file"] = path

    def move_probes(manifest: dict[str, Any]) -> None:
        manifest["probes"]["file"] = path

    for change in (move_branch, move_probes):
        forged = rewrite(shutil.copytree(copy, tmp_path / "copy"), change)
        with pytest.raises(BundleError, match="belong"):
            Bundle.load(forged)
        shutil.rmtree(forged)


def set_task(manifest: dict[str, Any]) -> None:
    manifest["branches"]["../../intent"] = manifest["branches"].pop("intent")


@pytest.mark.parametrize(
    "change",
    [
        set_task,
        lambda manifest: manifest.update(format=2),
        lambda manifest: manifest.update(extra=1),
        lambda manifest: manifest.pop("probes"),
        lambda manifest: manifest["trunk"].update(depth="4"),
        lambda manifest: manifest["trunk"].update(fingerprint="abc"),
        lambda manifest: manifest["branches"]["intent"].update(sha256="../" + "0" * 61),
        lambda manifest: manifest["branches"]["intent"].update(sha256="0" * 63 + "\n"),
    ],
)
def test_promise_7_a_manifest_of_another_shape_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(rewrite(copy, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": NaN}', pickle.dumps({})])
def test_promise_7_a_manifest_that_is_not_json_is_refused(copy: Path, content: bytes) -> None:
    renamed = copy.rename(copy.with_name("model"))
    (renamed / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(renamed)


class Harmful:
    """Unpickling this would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("part", ["trunk/model.safetensors", "trunk/tokenizer.json", "trunk/config.json", "branch"])
def test_promise_7_a_pickle_under_a_good_name_is_never_unpickled(copy: Path, tmp_path: Path, part: str) -> None:
    data = pickle.dumps(Harmful(tmp_path / "trace"))
    digest = hashlib.sha256(data).hexdigest()

    def forge(manifest: dict[str, Any]) -> None:
        if part != "branch":
            (copy / part).write_bytes(data)
            manifest["trunk"]["files"][part] = digest
            return
        (copy / manifest["branches"]["intent"]["file"]).unlink()
        file = f"branches/intent-{digest[:16]}.safetensors"
        (copy / file).write_bytes(data)
        manifest["branches"]["intent"] = {"file": file, "sha256": digest}

    forged = rewrite(copy, forge)
    verify(forged)  # every hash fits: only its content is wrong
    with pytest.raises(BundleError):
        Bundle.load(forged)
    assert not (tmp_path / "trace").exists()
    pickle.loads(data)
    assert (tmp_path / "trace").exists()


def test_promise_7_a_branch_under_another_tasks_name_is_refused(copy: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        entry = manifest["branches"].pop("intent")
        file = entry["file"].replace("intent", "other")
        (copy / entry["file"]).rename(copy / file)
        manifest["branches"]["other"] = {**entry, "file": file}

    with pytest.raises(BundleError, match="holds the branch of task 'intent', not of 'other'"):
        Bundle.load(rewrite(copy, swap))


def test_promise_7_a_branch_of_another_trunk_is_refused(copy: Path) -> None:
    with pytest.raises(BundleError, match="was made for trunk"):
        Bundle.load(rewrite(copy, lambda manifest: manifest["trunk"].update(fingerprint="0" * 64)))


def test_what_is_no_bundle_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "project.toml").write_text("")
    whys = {"": "it has no", "absent": "no such folder", "file": "it has no", "shop": "it is a project, whose bundle"}
    for name, why in whys.items():
        with pytest.raises(BundleError, match=f"is not a bundle: {why}"):
            Bundle.load(tmp_path / name)


def test_bundles_and_releases_are_read_without_torch() -> None:
    code = "import sys, trunkline.bundle; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
