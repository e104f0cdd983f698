"""This process among those that train one attempt, and the little on which all of them must agree.

With one process (`count()` is 1) nothing here imports torch, waits, or changes anything. With several, every function
that talks to the others must be called by all of them, in the same order: it is a collective.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from shared.runs import RESULT_FILE

_WAIT = timedelta(hours=6)
"""The agent's watch over stalls ends a run that hangs, and writes down why; a shorter wait here would only hide that."""
_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")
_group: Any = None


STOP_SIGNAL = signal.SIGUSR2
"""From the launcher: end with a checkpoint. SIGTERM ends a rank at once: torchrun sends it where another one has died."""


def number() -> int:
    """Return this process's rank, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes train this attempt."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this rank speaks for all: events, log lines, checkpoints, samples."""
    return number() == 0


def result_name(rank: int, of: int) -> str:
    """Return the file for the result of one of `of` ranks; with several, `result.json` is for the attempt as a whole."""
    return RESULT_FILE if of == 1 else f"result.{rank}.json"


def die_with_parent() -> None:
    """Let the kernel end this rank the moment its launcher is gone: no orphan goes on using a GPU whose lock is free."""
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it went before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def join(device: str) -> None:
    """Meet the other ranks; gloo carries tensors in memory, nccl those on GPUs. Does nothing where it is alone."""
    global _group  # noqa: PLW0603 - one process belongs to one group
    if count() == 1:
        return
    import torch
    from torch import distributed

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_WAIT)
    # of its own, and in host memory: asking the others once a step neither waits for the GPU nor mixes with gradients
    _group = distributed.new_group(backend="gloo", timeout=_WAIT)


def leave() -> None:
    """Part from the others after a run that all of them have ended."""
    global _group  # noqa: PLW0603
    if _group is None:
        return
    from torch import distributed

    _group = None
    distributed.destroy_process_group()


def agree(*flags: bool) -> tuple[bool, ...]:
    """Return each flag as set where any rank has set it."""
    if _group is None:
        return flags
    import torch
    from torch import distributed

    votes = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX, group=_group)
    return tuple(bool(vote) for vote in votes.tolist())


def first_does(work: Callable[[], _T]) -> _T:
    """Do `work` in the first rank alone and give its answer to all."""
    if _group is None:
        return work()
    from torch import distributed

    box: list[Any] = [work() if is_first() else None]
    distributed.broadcast_object_list(box, src=0, group=_group)
    answer: _T = box[0]
    return answer


def wait_for_all() -> None:
    """Go on once every rank is here."""
    agree(False)


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Let the first rank through, then the others: for what is made once on disk and then found there."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()
