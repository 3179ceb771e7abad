"""OpenVINO, without its telemetry.

Its converter reports every call to its makers, each time from a fork of this whole process. Nothing here is reported to
anybody, and a server with gigabytes of weights is no process to fork: where that package cannot be imported, OpenVINO
falls back on a stub of its own. So OpenVINO is imported from here and nowhere else.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: the import fails

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402

__all__ = ["PrePostProcessor", "TorchScriptPythonDecoder", "ops", "ov"]
