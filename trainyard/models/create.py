"""Runs the model maker of the agent package in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["tiny", "arithmetic", "smollm2"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MODULE = "services.gpu_agent.trainers.model_zoo"
_DEADLINE_SECONDS = 900


class ModelNotMade(Exception):
    """The maker failed; the text is its own last words and says what to do."""


def create(kind: Kind, out: Path) -> str:
    """Make a model in `out` unless it is there already, and return one line that says what was done.

    Raises ModelNotMade, also where the extra `agent` (torch, transformers) is not installed.
    """
    command = [sys.executable, "-m", _MODULE, kind, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelNotMade(f"Making {kind} took longer than {_DEADLINE_SECONDS} s.") from error
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    if "No module named 'torch'" in done.stderr or "No module named 'transformers'" in done.stderr:
        raise ModelNotMade("Models are made with torch: pip install 'trainyard[agent]'.")
    lines = done.stderr.strip().splitlines()
    raise ModelNotMade(
        lines[-1] if lines else f"The maker of {kind} ended with code {done.returncode}."
    )
