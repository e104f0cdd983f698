"""Make a model: `python -m services.gpu_agent.trainers.model_zoo tiny|arithmetic|smollm2 --out DIR`."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path

KINDS = ("tiny", "arithmetic", "smollm2")
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def is_complete(folder: Path) -> bool:
    """Tell whether a folder already holds a model with its tokenizer."""
    return all((folder / name).is_file() for name in _NEEDED)


def make(kind: str, out: Path) -> str:
    """Make the model in `out` unless it is there, and return what was done. The folder appears whole or not at all."""
    if is_complete(out):
        return f"{out} holds a model already; nothing to do"
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is there and holds something else; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".tmp-{out.name}-{secrets.token_hex(4)}")
    try:
        parameters = _save(kind, temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{out}: {kind}, {parameters:,} parameters"


def _save(kind: str, folder: Path) -> int:
    if kind == "smollm2":
        from services.gpu_agent.trainers.model_zoo.smollm2 import save_smollm2

        return save_smollm2(folder)
    from services.gpu_agent.trainers.model_zoo.qwen_toys import ARITHMETIC, TINY, save_toy

    return save_toy({"tiny": TINY, "arithmetic": ARITHMETIC}[kind], folder)


def main(arguments: list[str] | None = None) -> int:
    """Make one model and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.gpu_agent.trainers.model_zoo")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        sys.stdout.write(make(options.kind, options.out.expanduser().resolve()) + "\n")
    except Exception as error:  # noqa: BLE001 - a command says what is wrong in one line
        sys.stderr.write(f"The model {options.kind} could not be made: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
