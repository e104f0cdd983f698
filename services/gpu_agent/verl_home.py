"""Where this host has verl: in the agent's own environment, or in one of its own.

verl 0.7.0 with vLLM (`vllm<=0.12`) wants an older torch and transformers than the trainers here, so the usual place is an
environment of its own, named by TRAINYARD_AGENT_VERL_PYTHON. Nothing of ours has to be installed there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Final

VARIABLE: Final = "TRAINYARD_AGENT_VERL_PYTHON"
_FIND: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('verl') is None)"
_SECONDS: Final = 30.0


def python() -> str:
    """Return the interpreter that runs verl."""
    return os.environ.get(VARIABLE) or sys.executable


def is_installed() -> bool:
    """Tell whether that interpreter finds verl; it blocks for as long as an interpreter takes to start."""
    if python() == sys.executable:
        return importlib.util.find_spec("verl") is not None
    try:
        command = [python(), "-c", _FIND]
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
