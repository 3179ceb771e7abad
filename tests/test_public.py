"""The public names of the package, and the direction of its imports."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline
from trunkline import errors

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "trunkline"
MODULES = {
    ".".join(("trunkline", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# What each part may import besides itself; CONTRIBUTING.md draws it.
BASE = {"errors", "atomic"}
MODEL = BASE | {"project", "model"}
MAY_IMPORT = {
    "errors": set[str](),
    "atomic": {"errors"},
    "project": BASE,
    "model": BASE | {"project"},
    "training": MODEL,
    "engine": MODEL | {"machine"},
    "bundle": MODEL | {"engine"},
    "tables": set[str](),
    "report": BASE | {"tables"},
    "machine": set[str](),
    "pipeline": MODEL | {"training", "engine", "bundle", "report", "machine"},
    "cluster": MODEL | {"engine", "pipeline"},
    "predicting": MODEL | {"engine", "bundle"},
    "serving": MODEL | {"engine", "bundle"},
    "bench": MODEL | {"engine", "bundle", "predicting", "serving", "machine", "tables"},
    "client": BASE | {"project", "engine"},
}


def test_the_public_names_are_these() -> None:
    assert sorted(trunkline.__all__) == ["AsyncClient", "Bundle", "Client", "Project", "__version__", "errors"]
    for name in trunkline.__all__:
        assert getattr(trunkline, name) is not None
    assert callable(trunkline.Project.load)
    assert callable(trunkline.Project.run)
    assert callable(trunkline.Bundle.load)
    assert callable(trunkline.Bundle.predict)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Bundel"):
        _ = trunkline.Bundel  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert trunkline.__version__ == project["version"]


def test_every_error_has_its_place_in_the_tree_and_its_exit_code() -> None:
    raised = {
        name: (kind.__base__.__name__, kind.exit_code)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TrunklineError) and kind.__base__ is not None
    }
    assert raised == {
        "TrunklineError": ("Exception", 1),
        "UsageError": ("TrunklineError", 2),
        "ProjectError": ("TrunklineError", 2),
        "EncoderError": ("TrunklineError", 2),
        "MissingExtra": ("TrunklineError", 2),
        "StoreError": ("TrunklineError", 1),
        "BundleError": ("TrunklineError", 1),
        "ProbeError": ("BundleError", 1),
    }


@pytest.mark.parametrize(
    "module",
    [
        "trunkline",
        "trunkline.cli",
        "trunkline.client",
        "trunkline.project.config",
        "trunkline.project.data",
        "trunkline.serving.service",
    ],
)
def test_what_every_command_imports_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'sklearn'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    part = part_of(module)
    if part not in MAY_IMPORT or module.endswith("command"):
        pytest.skip(f"trunkline.{part} is the surface: it may import every part")
    own = {part_of(name) for name in imports(module) if name.split(".")[0] == "trunkline"}
    assert own <= MAY_IMPORT[part] | {part}


@pytest.mark.parametrize("module", MODULES)
def test_transformers_is_touched_in_model_only(module: str) -> None:
    used = {name.split(".")[0] for name in imports(module)}
    assert "transformers" not in used or part_of(module) == "model"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("trunkline.project")])
def test_project_files_are_read_without_torch(module: str) -> None:
    assert not {"torch", "transformers", "tokenizers", "safetensors"} & {name.split(".")[0] for name in imports(module)}


def test_every_part_is_known_to_these_tests() -> None:
    assert {part_of(name) for name in MODULES} - MAY_IMPORT.keys() <= {"", "cli", "console", "options", "__main__"}


def test_every_module_can_be_imported() -> None:
    for name in MODULES:
        if name != "trunkline.__main__":
            importlib.import_module(name)


def test_the_lock_names_exact_public_versions_only() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    installed = [extras[name] for name in ("dev", "quickstart", "openvino", "serve", "client", "report", "otel", "ray")]
    for wanted in [*project["dependencies"], *(name for extra in installed for name in extra)]:
        name = re.split(r"[^A-Za-z0-9._-]", wanted)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in locked, wanted


def part_of(module: str) -> str:
    """ "trunkline.model.branch" -> "model"; "trunkline" -> ""."""
    return [*module.split("."), ""][1]


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports anywhere, lazily or for types alone, by its full name."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import at line {node.lineno}"
            assert node.module is not None
            yield from (
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )
