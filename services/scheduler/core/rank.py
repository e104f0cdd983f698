"""Which of the hosts that would do is best: locality first, then the tightest fit over GPUs and memory."""

from __future__ import annotations

from services.scheduler.core.order import Ask
from services.scheduler.core.state import Host

Cost = tuple[bool, bool, bool, int, int, int, str]


def cost(ask: Ask, host: Host, free: int) -> Cost:
    """Return what `host` costs with `free` suitable GPUs; the smallest wins, the host id breaks ties.

    A GPU before a CPU slot; the host of the newest checkpoint; a GPU larger than the one that ran out of memory;
    where an estimate exists the smallest GPU that holds it; the fewest GPUs left over; then the smaller GPU.
    """
    memory = host.shape.kinds[-1][1] if len(host.shape.kinds) == 1 else largest_memory(host)
    return (
        not host.shape.cuda,
        ask.prefer is not None and not host.can_read(ask.prefer),
        bool(ask.outgrown_mib) and memory <= ask.outgrown_mib,
        memory if ask.memory_mib else 0,
        free - ask.num_gpus,
        memory,
        host.id,
    )


def largest_memory(host: Host) -> int:
    """Return the memory of the host's largest GPU in MiB, 0 without one."""
    return max((memory for _, memory in host.shape.kinds), default=0)
