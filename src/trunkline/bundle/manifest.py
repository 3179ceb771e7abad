"""What a bundle is made of, and the check that a folder is that bundle and nothing else.

    manifest.json                      names one trunk and one branch per task, each file by its sha256
    trunk/                             the encoder's own files: config.json, safetensors, tokenizer
    branches/<task>-<hash16>.safetensors
    probes.json                        inputs and the logits that every task must give for them
    int8/<trunk|task>-<hash16>.safetensors   where it was quantized: ranges of the trunk, and of branches that have any

A bundle's id is the first 16 hex digits of the sha256 of manifest.json, and names its folder. This module knows files
and hashes only; it never imports torch, so that releases can be listed and checked at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from trunkline.atomic import write_json
from trunkline.errors import BundleError

MANIFEST = "manifest.json"
PROBES = "probes.json"
TRUNK = "trunk"
BRANCHES = "branches"
INT8 = "int8"
VALID = "valid"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

# Data only: what an encoder's weights, config and tokenizer come in.
_TRUNK_FILE = re.compile(r"trunk/[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|json|txt|model|codes)", re.ASCII)
_ID = re.compile(r"[0-9a-f]{16}")
_LARGEST_MANIFEST = 16 * 1024 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrunkEntry(_Strict):
    """The bundle's trunk: what identifies it, its shape, and the sha256 of each of its files by path in the bundle."""

    fingerprint: Hash
    source: str
    family: str
    depth: int
    width: int
    files: dict[str, Hash]

    @field_validator("files")
    @classmethod
    def _only_data(cls, files: dict[str, str]) -> dict[str, str]:
        for path in files:
            if not _TRUNK_FILE.fullmatch(path):
                raise ValueError(f"{path!r} is not a safetensors, JSON or vocabulary file directly in {TRUNK}/")
        return files


class FileEntry(_Strict):
    """One file of the bundle, by path in the bundle and sha256."""

    file: str
    sha256: Hash


class Change(_Strict):
    """A metric on one split: in floats, and in int8 on the same engine."""

    floats: float
    int8: float


class Quality(_Strict):
    """A task's `metric` per split, in floats and in int8; ranges were calibrated on rows of "valid"."""

    metric: str
    splits: dict[str, Change]

    def __str__(self) -> str:
        shown = [
            f"{change.floats:.3f} -> {change.int8:.3f} ({split}{', calibrated on it' if split == VALID else ''})"
            for split, change in self.splits.items()
        ]
        return f"{self.metric} {', '.join(shown)}"


class TaskInt8(_Strict):
    """What int8 does to one task: its branch's ranges (None where no layer of it has any), and what was measured."""

    ranges: FileEntry | None = None
    quality: Quality


class Int8Entry(_Strict):
    """What the bundle needs to run in int8: ranges of the trunk, and each measured task.

    `dtype` is the float type of what is no integer, and the one that int8 was compared with.
    """

    dtype: Annotated[str, Field(pattern=r"^(float32|bfloat16)$")]
    trunk: FileEntry
    tasks: dict[Name, TaskInt8]

    @model_validator(mode="after")
    def _named_by_content(self) -> Self:
        for name, entry in {TRUNK: self.trunk, **{task: found.ranges for task, found in self.tasks.items()}}.items():
            if entry is not None and entry.file != ranges_path(name, entry.sha256):
                raise ValueError(f"{entry.file!r} is not where the ranges of '{name}' belong")
        return self

    def files(self) -> dict[str, str]:
        """Every file of ranges: path in the bundle -> sha256."""
        entries = [self.trunk, *(found.ranges for found in self.tasks.values())]
        return {entry.file: entry.sha256 for entry in entries if entry is not None}


class Manifest(_Strict):
    """The content of manifest.json; `name` is the name of the project that made it."""

    format: Literal[1] = 1
    name: str
    trunk: TrunkEntry
    branches: dict[Name, FileEntry]
    probes: FileEntry
    int8: Int8Entry | None = None

    @field_validator("branches")
    @classmethod
    def _named_by_content(cls, branches: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for task, entry in branches.items():
            if entry.file != branch_path(task, entry.sha256):
                raise ValueError(f"{entry.file!r} is not where the branch of task '{task}' belongs")
        return branches

    @field_validator("probes")
    @classmethod
    def _one_place(cls, probes: FileEntry) -> FileEntry:
        if probes.file != PROBES:
            raise ValueError(f"{probes.file!r} is not where the probes belong")
        return probes

    @field_validator("int8")
    @classmethod
    def _of_its_branches(cls, int8: Int8Entry | None, info: ValidationInfo) -> Int8Entry | None:
        unknown = set() if int8 is None else int8.tasks.keys() - info.data.get("branches", {}).keys()
        if unknown:
            raise ValueError(f"there is no branch of {', '.join(sorted(unknown))}")
        return int8

    def files(self) -> dict[str, str]:
        """Every file of the bundle but the manifest: path in the bundle -> sha256."""
        branches = {entry.file: entry.sha256 for entry in self.branches.values()}
        int8 = {} if self.int8 is None else self.int8.files()
        return {**self.trunk.files, **branches, self.probes.file: self.probes.sha256, **int8}

    def write(self, folder: Path) -> None:
        """Write manifest.json; what a bundle does not have is not named."""
        write_json(folder / MANIFEST, self.model_dump(mode="json", exclude_none=True))

    def hashes(self) -> dict[str, str]:
        """Task -> sha256 of its branch."""
        return {task: entry.sha256 for task, entry in sorted(self.branches.items())}


def branch_path(task: str, sha256: str) -> str:
    """Where the branch of a task lies in a bundle."""
    return f"{BRANCHES}/{task}-{sha256[:16]}.safetensors"


def ranges_path(name: str, sha256: str) -> str:
    """Where the int8 ranges of the trunk or of a task's branch lie in a bundle."""
    return f"{INT8}/{name}-{sha256[:16]}.safetensors"


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_id(folder: Path) -> str:
    """The id of the bundle in `folder`, from its manifest.json. Raises BundleError."""
    return hashlib.sha256(_read(folder)).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, its files not looked at. Raises BundleError."""
    try:
        return Manifest.model_validate_json(_read(folder))
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{folder / MANIFEST}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def verify(folder: Path, *, trusted: Mapping[str, str] = MappingProxyType({})) -> Manifest:
    """Check that `folder` holds exactly the files that its manifest names, unchanged; returns the manifest.

    The content of `trusted` files (path -> sha256) is not read: whoever calls has it in memory already.

    Links, files that the manifest does not name, paths out of the folder, and, in a folder that is named like a bundle
    id, a manifest with another id: all are refused. Raises BundleError.
    """
    manifest = read_manifest(folder)
    if _ID.fullmatch(folder.name) and bundle_id(folder) != folder.name:
        raise BundleError(f"{folder / MANIFEST} was changed: its id is {bundle_id(folder)}")
    expected = manifest.files()
    missing = expected.keys() - {MANIFEST}
    for path in _walk(folder, folders={Path(file).parent.as_posix() for file in expected}):
        if path == MANIFEST:
            continue
        if path not in expected:
            raise BundleError(f"{folder / path} is not part of the bundle: its manifest does not name it")
        missing -= {path}
        if trusted.get(path) == expected[path]:
            continue
        try:
            found = file_hash(folder / path)
        except OSError as error:
            raise BundleError(f"{folder / path} cannot be read: {error.strerror}") from None
        if found != expected[path]:
            raise BundleError(f"{folder / path} is damaged: sha256 {found}, the manifest says {expected[path]}")
    if missing:
        raise BundleError(f"{folder} is incomplete: {', '.join(sorted(missing))} missing")
    return manifest


def _read(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_MANIFEST:
            raise BundleError(f"{path} is not a manifest: it must be a plain file of at most 16 MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        why = f"it has no {MANIFEST}" if folder.exists() else "no such folder"
        if (folder / "project.toml").is_file():
            why = f"it is a project, whose bundle `trunkline -C {folder} release show` names"
        raise BundleError(f"{folder} is not a bundle: {why}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None


def _walk(folder: Path, folders: set[str]) -> Iterator[str]:
    """Paths of the plain files in a bundle; anything but plain files in the given folders raises BundleError."""
    for parent, names, files in os.walk(folder):
        for name in [*names, *files]:
            full = Path(parent, name)
            path = full.relative_to(folder).as_posix()
            mode = full.lstat().st_mode
            if stat.S_ISREG(mode):
                yield path
            elif stat.S_ISLNK(mode):
                raise BundleError(f"{full} is a link; a bundle holds its own files only")
            elif not stat.S_ISDIR(mode):
                raise BundleError(f"{full} is neither a file nor a folder")
            elif path not in folders:
                raise BundleError(f"{full} is not part of the bundle: its manifest names nothing in it")
