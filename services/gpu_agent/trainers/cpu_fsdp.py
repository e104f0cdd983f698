"""FSDP on CPU ranks, so that a job that shares a model can be tried and tested without a GPU.

torch 2.13 splits models over gloo (`fully_shard`; its all-gather and reduce-scatter are there). accelerate 1.15 takes
notice of an FSDP plugin on accelerators only, and trains with DDP without a word where the ranks are CPUs
(`AcceleratorState.__init__`, accelerate/state.py: the branch of MULTI_GPU and its like). Ranks on CPUs are let into that
branch; from there on it asks the device of the accelerator, which stays the CPU.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType


def allow(arguments: Any) -> None:
    """Call it between the making of `TrainingArguments` and of the `Accelerator`; it changes nothing elsewhere."""
    state = PartialState._shared_state
    on_cpus = state.get("distributed_type") == DistributedType.MULTI_CPU
    if arguments.fsdp and on_cpus:
        state["distributed_type"] = DistributedType.MULTI_GPU
