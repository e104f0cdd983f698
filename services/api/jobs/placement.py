"""Whether a job will run on the api's own machine, which decides what of its paths can be checked here. Pure.

A path is refused at submit only where this machine is certainly the one that reads it: its own agent is the only one
there is, or the job is pinned to it. Where another host may take the job, what is wrong here is a warning; where another host
certainly does, nothing is looked at, and that host checks (PRODUCT section 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.specs import JobSpec


class Place(StrEnum):
    """Where a job's paths will be read."""

    HERE = "here"
    PERHAPS = "perhaps"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class KnownHost:
    """What the decision needs of a host."""

    id: str
    label: str
    hostname: str | None
    device: str | None
    gpu_mib: int
    """Memory of its largest GPU."""
    memory_mib: int


def place_of(spec: JobSpec, hosts: Sequence[KnownHost], hostname: str, *, embedded: bool) -> Place:
    """Return where the job will run, as far as is known. `embedded`: the stack has an agent on this machine."""
    if spec.run_mode == "ssh":
        return Place.ELSEWHERE
    if spec.host is not None:
        pinned = [h for h in hosts if spec.host in {h.id, h.label}]
        if not pinned:
            return Place.PERHAPS
        return Place.HERE if pinned[0].hostname == hostname else Place.ELSEWHERE
    if not hosts:
        return Place.HERE if embedded else Place.PERHAPS
    here = [h.hostname == hostname for h in hosts]
    if all(here):
        return Place.HERE
    return Place.PERHAPS if any(here) else Place.ELSEWHERE
