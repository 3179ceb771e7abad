"""Train each text task on its own; serve all of them in one pass of a shared, frozen BERT trunk.

>>> from trunkline import Bundle, Project
>>> Project.load("support").run()                                   # doctest: +SKIP
>>> Project.load("support").bundle().predict(["where is my parcel?"])  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from trunkline import errors

if TYPE_CHECKING:
    from trunkline.bundle import Bundle
    from trunkline.client import AsyncClient, Client
    from trunkline.pipeline.project import Project

__version__ = version("trunkline")
__all__ = ["AsyncClient", "Bundle", "Client", "Project", "__version__", "errors"]

_LAZY = {
    "AsyncClient": "trunkline.client",
    "Bundle": "trunkline.bundle",
    "Client": "trunkline.client",
    "Project": "trunkline.pipeline.project",
}


def __getattr__(name: str) -> Any:
    """Import torch, or an HTTP library, only when something is used that needs it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'trunkline' has no attribute {name!r}")
