"""Classifiers for Infinity, made with its own Python: `PYTHON benchmarks/infinity_models.py ENCODER OUT --count 8`.

Each is a full transformers sequence classifier of the shape of the encoder in the folder ENCODER, with three labels,
random weights and that encoder's tokenizer: `OUT/torch/taskN`. For Infinity's optimum engine the same models are also
written as ONNX (`OUT/onnx/taskN`) and as ONNX with 8-bit weights (`OUT/onnx-int8/taskN`), where onnxruntime is there.
Runs in Infinity's environment, so that its own version of transformers reads what the same version wrote. Knows nothing
of Trunkline.

That environment, as it was for the committed figures (torch 2.13 comes first, in a build for CPUs):

    pip install torch==2.13.0 'infinity_emb[torch,server,optimum]==0.0.78' optimum==1.24.0 \\
      'transformers<4.49' 'datasets<4' 'pyarrow<21' 'numpy<2'
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ONNX_MODEL = "model.onnx"  # the name that Infinity looks for
ONNX_INT8 = "model_quantized.onnx"  # and the one that it prefers on a CPU


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder with config.json and tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    for number in range(options.count):
        plain = options.out / "torch" / f"task{number}"
        if not plain.is_dir():
            make(options.encoder, plain, seed=number)
        try:
            make_onnx(plain, options.out)
        except ImportError as error:
            print(f"no ONNX: {error}")


def make(encoder: Path, folder: Path, seed: int) -> None:
    """One classifier and its tokenizer."""
    config = AutoConfig.from_pretrained(encoder)
    config.num_labels = 3
    torch.manual_seed(seed)
    scratch = folder.with_name(f".{folder.name}")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(scratch)
    file = str(encoder / "tokenizer.json")
    PreTrainedTokenizerFast(
        tokenizer_file=file, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=512
    ).save_pretrained(scratch)
    scratch.rename(folder)


def make_onnx(plain: Path, out: Path) -> None:
    """The same classifier as ONNX, in float32 and with dynamic 8-bit arithmetic. Raises ImportError without onnx."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full, int8 = out / "onnx" / plain.name, out / "onnx-int8" / plain.name
    if not full.is_dir():
        scratch = _beside(plain, full)
        model = AutoModelForSequenceClassification.from_pretrained(plain, attn_implementation="eager").eval()
        sample = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
        axes = {name: {0: "rows", 1: "tokens"} for name in INPUTS} | {"logits": {0: "rows"}}
        with torch.inference_mode():
            torch.onnx.export(
                model,
                sample,
                str(scratch / ONNX_MODEL),
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )
        scratch.rename(full)
    if not int8.is_dir():
        scratch = _beside(plain, int8)
        quantize_dynamic(full / ONNX_MODEL, scratch / ONNX_INT8, weight_type=QuantType.QInt8)
        scratch.rename(int8)


def _beside(plain: Path, folder: Path) -> Path:
    """A scratch folder for `folder` with all of the classifier but its weights."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(plain, scratch, ignore=shutil.ignore_patterns("*.safetensors"))
    return scratch


if __name__ == "__main__":
    main()
