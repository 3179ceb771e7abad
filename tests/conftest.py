"""Shared by all tests: nothing may reach the network, and nothing fails for being slow on a busy machine."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
