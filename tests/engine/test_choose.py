"""Which engine a bundle gets, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_encoder

from trunkline.engine.choose import choose
from trunkline.errors import UsageError
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)


def trunk(folder: Path, family: str = "bert") -> Trunk:
    return Trunk(Encoder.load(tiny_encoder(folder, family)), "f" * 64)


def test_a_cpu_gets_openvino_in_the_arithmetic_that_was_measured(tmp_path: Path) -> None:
    found = choose(trunk(tmp_path), device="cpu")
    assert found.engine == "openvino"
    assert found.dtype in ("float32", "bfloat16")
    assert "ms" in found.why or "no bfloat16" in found.why
    assert choose(trunk(tmp_path), "openvino", "float32").dtype == "float32"
    assert choose(trunk(tmp_path), "torch", device="cpu").dtype == "float32"


def test_a_family_that_a_conversion_would_get_wrong_has_another_engine(tmp_path: Path) -> None:
    deberta, modern = trunk(tmp_path / "one", "deberta"), trunk(tmp_path / "two", "modernbert")
    assert choose(deberta, device="cpu").engine == "torch"
    assert choose(modern, device="cpu").dtype == "float32"
    for asked, about in (((deberta, "openvino"), "deberta"), ((modern, "openvino", "bfloat16"), "modernbert")):
        with pytest.raises(UsageError, match=about):
            choose(*asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("openvno",), "openvino"),
        (("auto", "float16"), "bfloat16"),
        (("auto", "auto", "gpu"), "cuda"),
        (("auto", "auto", "cuda:one"), "unknown device 'cuda:one'"),
        (("auto", "auto", "cuda:99"), "device cuda:99: torch sees"),
        (("torch", "bfloat16", "cpu"), "in float32"),
        (("openvino", "auto", "cuda"), "CPU"),
        (("auto", "auto", "cuda"), "no GPU"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tmp_path: Path, asked: tuple[str, ...], message: str) -> None:
    import torch

    if message == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=message):
        choose(trunk(tmp_path), *asked)


def test_int8_is_refused_where_its_sums_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.engine.choose.platform.machine", lambda: "x86_64")
    for exact in (True, False):
        monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda exact=exact: exact)
        if exact:
            assert choose(trunk(tmp_path / "a"), "openvino", "int8").dtype == "int8"
        else:
            with pytest.raises(UsageError, match="int8 takes a CPU with VNNI"):
                choose(trunk(tmp_path / "b"), "openvino", "int8")
