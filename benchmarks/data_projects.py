"""Projects over the data folder, as examples/glue writes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PREPARE = Path(__file__).resolve().parents[1] / "examples" / "glue" / "prepare.py"


def write_project(data: Path, work: Path, tasks: Sequence[str], *options: str) -> None:
    """Write the files of a project with these tasks; `options` are those of prepare.py, and its store stays."""
    line = [sys.executable, str(PREPARE), str(data.resolve()), "--out", str(work), "--tasks", ",".join(tasks)]
    subprocess.run([*line, "--replace", *options], check=True, stdout=subprocess.DEVNULL)


def with_values(settings: Any, **values: Any) -> Any:
    """Settings with some of their values replaced."""
    return settings.model_copy(update=values)
