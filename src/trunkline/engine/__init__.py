"""Engines: what turns inputs into logits and answers. They know modules; nothing of files or training."""

from trunkline.engine.base import Engine, Input, ItemError, as_input, predict

__all__ = ["Engine", "Input", "ItemError", "as_input", "predict"]
