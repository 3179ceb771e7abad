"""What a measured time depends on besides what is measured. Knows this machine, nothing of models."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor, how many of its cores and threads are used, and the version of torch."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    threads = os.environ.get("OMP_NUM_THREADS")
    limited = {"threads": int(threads)} if threads and threads.isdigit() else {}
    return {"cpu": name, "cores": len(usable(0)) if usable else os.cpu_count(), **limited, "torch": version("torch")}
