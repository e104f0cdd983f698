"""Half precision on CPUs that promise an instruction and then trap on it, as some virtual machines do with AMX."""

from __future__ import annotations

import os
import resource
import signal
import time

import torch

from services.gpu_agent.trainers.failures import TrainingFailure
from shared.jobs.reasons import Reason

_LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_WITHOUT_AMX = "AVX512_CORE_BF16"
_PROBE_SECONDS = 20.0


def make_usable() -> str | None:
    """Make sure that a bfloat16 product does not kill this process; call it before the first product.

    Returns a warning where AMX had to be turned off. Raises TrainingFailure where bfloat16 does not work at all.
    """
    if _survives():
        return None
    os.environ[_LIMIT_VARIABLE] = _WITHOUT_AMX  # oneDNN reads it at its first use
    if _survives():
        return "This CPU reports AMX but cannot run it; bf16 works without it, only slower."
    raise TrainingFailure(
        Reason.CONFIG_INVALID,
        "This host's CPU cannot compute in bf16; set precision to auto or fp32.",
        "该主机的 CPU 无法进行 bf16 计算；请将 precision 设为 auto 或 fp32。",
    )


def _survives() -> bool:
    """Try a product in a child process: an illegal instruction cannot be caught, only survived by another."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)
            left = torch.ones(64, 64, dtype=torch.bfloat16)
            good = bool((torch.nn.functional.linear(left, left).float() == 64).all())
            os._exit(0 if good else 1)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
