"""How full the memory of the host and of the GPU is, and one warning each time it passes 90 %."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

WARN_AT = 0.90
CLEAR_AT = 0.85
CHECK_SECONDS = 5.0

GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Use:
    """Used and available-in-all bytes of one kind of memory."""

    what: str
    used: int
    total: int

    @property
    def fraction(self) -> float:
        """Used part, 0 to 1."""
        return self.used / self.total if self.total > 0 else 0.0


def host_use(cgroup: Path = _CGROUP) -> Use:
    """Return the use of the container's limit where there is one, else of the host's memory."""
    machine = psutil.virtual_memory()
    try:
        limit = int((cgroup / "memory.max").read_text())
        if limit < machine.total:
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            used = int((cgroup / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
            return Use("container memory", used, limit)
    except (OSError, ValueError):
        pass  # no limit ("max"), or no cgroup v2
    return Use("host memory", machine.total - machine.available, machine.total)


def cuda_use() -> Use | None:
    """Return the use of the current GPU, or None where CUDA is not in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    free, total = torch.cuda.mem_get_info()
    return Use("GPU memory", total - free, total)


class MemoryWatch:
    """Says when a use passes 90 %, once until it has fallen below 85 %."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._next = 0.0

    def look(self, now: float) -> list[str]:
        """Return warnings that are new at `now` (seconds, any steady clock); looks at most every 5 s."""
        if now < self._next:
            return []
        self._next = now + CHECK_SECONDS
        return self.judge([use for use in (host_use(), cuda_use()) if use is not None])

    def judge(self, uses: list[Use]) -> list[str]:
        """Return a sentence with a remedy for every use that has newly passed 90 %."""
        sentences = []
        for use in uses:
            if use.fraction >= WARN_AT and use.what not in self._warned:
                self._warned.add(use.what)
                sentences.append(
                    f"High memory usage: {use.fraction:.0%} of {use.what} "
                    f"({use.used / GIB:.1f} of {use.total / GIB:.1f} GiB). "
                    "If it runs out: smaller batch_size, shorter context_length, or LoRA."
                )
            elif use.fraction < CLEAR_AT:
                self._warned.discard(use.what)
        return sentences
