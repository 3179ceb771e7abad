"""Infinity's own command line, with its ONNX engine importable: `PYTHON benchmarks/infinity_server.py v2 --model-id …`.

optimum 1.24, the version that this Infinity's ONNX engine and its BetterTransformer both work with, imports private
names of torch's ONNX exporter, which newer torch keeps in another module. Serving never calls them, but the import
fails. This puts them where they are looked for, and changes nothing else. Runs in Infinity's environment.
"""

from __future__ import annotations

import importlib

PLACE = "torch.onnx.symbolic_opset14"
MOVED = "torch.onnx._internal.torchscript_exporter.symbolic_opset14"


def main() -> None:
    """Run Infinity's command line."""
    place, moved = (vars(importlib.import_module(name)) for name in (PLACE, MOVED))
    place.update({name: value for name, value in moved.items() if name not in place})
    from infinity_emb.cli import cli

    cli()


if __name__ == "__main__":
    main()
