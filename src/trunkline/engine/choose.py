"""Which engine, arithmetic and device a bundle runs on: asked for, or chosen by what the machine has and measures.

Knows names and features; builds nothing that it does not throw away.
"""

from __future__ import annotations

import platform
import re
import statistics
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from trunkline.errors import UsageError, unknown

if TYPE_CHECKING:
    from trunkline.model.trunk import Trunk

ENGINES = ("auto", "openvino", "torch")
INT8 = "int8"
DTYPES = ("auto", "float32", "bfloat16", INT8)
DEVICES = ("auto", "cpu", "cuda")

NOT_IN_OPENVINO = {"deberta": "its attention takes another path for long texts, which a conversion does not follow"}
"""Families by the reason why they have no OpenVINO engine."""
FLOAT32_ONLY = {"modernbert": "OpenVINO would round the angles of its positions"}
"""Families by the reason why OpenVINO runs them in float32 only."""

_KNOWN = {"engine": ENGINES, "dtype": DTYPES, "device": DEVICES}
_GAIN = 0.9
"""bfloat16 costs digits: it has to take at most this share of float32's time."""
_ROWS, _TOKENS, _REPEATS = 16, 32, 7


@dataclass(frozen=True)
class Choice:
    """An engine with its arithmetic and device, and `why` for those who start it.

    In "int8", the products of linear layers are of integers, and all else is of the float type `rest`.
    """

    engine: str
    dtype: str
    device: str
    why: str
    rest: str = ""

    @property
    def floats(self) -> str:
        """The type of whatever is no integer."""
        return self.rest or self.dtype

    def __str__(self) -> str:
        return f"{self.engine}, {self.dtype}, {self.device} ({self.why})"


def check_name(what: str, value: str) -> None:
    """Raise UsageError unless `value` names an engine, a dtype or a device, as `what` says; "cuda:1" is a device."""
    if value not in _KNOWN[what] and not (what == "device" and re.fullmatch("cuda:[0-9]+", value)):
        raise UsageError(unknown(what, value, _KNOWN[what]))


def choose(
    trunk: Trunk, engine: str = "auto", dtype: str = "auto", device: str = "auto", *, rest: str = "float32"
) -> Choice:
    """Settle what is left to "auto" for this trunk on this machine; int8 is never chosen unasked.

    `rest` is the type of what is no integer in int8, as far as the machine has it: the one that was measured.

    Raises UsageError for an unknown name, and for what is not installed or not there.
    """
    for what, value in (("engine", engine), ("dtype", dtype), ("device", device)):
        check_name(what, value)
    family = trunk.encoder.family
    if engine == "openvino" and (reason := no_openvino(family)) is not None:
        raise UsageError(reason)
    if engine != "torch" and dtype == "bfloat16" and family in FLOAT32_ONLY:
        raise UsageError(f"{family} does not run in bfloat16 on the OpenVINO engine: {FLOAT32_ONLY[family]}")
    if engine == "openvino" and device.startswith("cuda"):
        raise UsageError("the OpenVINO engine runs on the CPU; a GPU takes the engine torch")
    if dtype == INT8:
        return _in_int8(engine, device, family, rest)
    if device != "cpu" and engine != "openvino" and _cuda(device):
        return _on_gpu(dtype, "cuda" if device == "auto" else device)
    reason = no_openvino(family)
    if engine == "torch" or reason is not None:
        if dtype == "bfloat16":
            raise UsageError("on a CPU the engine torch computes in float32; bfloat16 takes the engine openvino")
        return Choice("torch", "float32", "cpu", "as asked" if engine == "torch" else str(reason))
    if dtype != "auto":
        return Choice("openvino", dtype, "cpu", "as asked")
    if family in FLOAT32_ONLY:
        return Choice("openvino", "float32", "cpu", f"{family}: {FLOAT32_ONLY[family]}")
    return _measured(trunk)


def no_int8() -> str | None:
    """Why this CPU gives no sound answers in int8, None where it does."""
    import torch

    if platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported():
        return "int8 takes a CPU with VNNI: on this one sums of 8-bit products overflow, and answers would be wrong"
    return None


def _in_int8(engine: str, device: str, family: str, rest: str) -> Choice:
    if engine == "torch" or device.startswith("cuda"):
        raise UsageError("int8 takes the engine openvino, on the CPU")
    if (reason := no_openvino(family)) is not None:
        raise UsageError(f"int8 takes the engine openvino: {reason}")
    if (reason := no_int8()) is not None:
        raise UsageError(reason)
    if rest == "bfloat16" and not _has_bfloat16():
        return Choice("openvino", INT8, "cpu", "as asked; the rest in float32: this CPU has no bfloat16", "float32")
    return Choice("openvino", INT8, "cpu", f"as asked; the rest in {rest}, as measured", rest)


def _has_bfloat16() -> bool:
    from trunkline.engine.runtime import ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def no_openvino(family: str) -> str | None:
    """Why encoders of this family cannot run on the OpenVINO engine here, None where they can."""
    if find_spec("openvino") is None:
        return "the OpenVINO engine is not installed: pip install -e '.[openvino]' in the clone"
    if family in NOT_IN_OPENVINO:
        return f"{family} does not run on the OpenVINO engine: {NOT_IN_OPENVINO[family]}"
    return None


def _cuda(device: str) -> bool:
    """Whether there is a GPU to run on. Raises UsageError where this device was asked for and is not there."""
    import torch

    number = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and number >= count:
        raise UsageError(f"device {device}: torch sees {count or 'no'} GPU{'s' if count > 1 else ''} on this machine")
    return count > 0


def _on_gpu(dtype: str, device: str) -> Choice:
    import torch

    name = torch.cuda.get_device_name(device)
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return Choice("torch", dtype, device, name)


def _measured(trunk: Trunk) -> Choice:
    """float32 or bfloat16, by one trunk layer in both, timed in turn."""
    from trunkline.engine.openvino import Builder

    if not _has_bfloat16():
        return Choice("openvino", "float32", "cpu", "this CPU has no bfloat16")
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    runs = {dtype: Builder(trunk, dtype=dtype).sample(_ROWS, _TOKENS) for dtype in times}
    for _ in range(_REPEATS + 1):
        for dtype, run in runs.items():
            started = time.perf_counter()
            run()
            times[dtype].append(time.perf_counter() - started)
    medians = {dtype: 1000 * statistics.median(found[1:]) for dtype, found in times.items()}
    best = "bfloat16" if medians["bfloat16"] <= _GAIN * medians["float32"] else "float32"
    shown = ", ".join(f"{dtype} {ms:.2f} ms" for dtype, ms in medians.items())
    return Choice("openvino", best, "cpu", f"a layer of {_ROWS} x {_TOKENS} tokens: {shown}")
