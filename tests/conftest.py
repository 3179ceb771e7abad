"""Shared by all tests: nothing may reach the network, and nothing fails for being slow on a busy machine."""

import os
from collections import Counter

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Number tests of one name, of which pytest-xdist runs one alone: schemathesis makes one for each operation."""
    seen: Counter[str] = Counter()
    for item in items:
        name = item.nodeid
        seen[name] += 1
        if seen[name] > 1:
            item._nodeid = f"{name}[{seen[name]}]"
