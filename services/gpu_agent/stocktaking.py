"""What lies in a job's checkpoint folder, compared with what the control plane believes: the difference as facts.

They differ after an attempt was given up while its host was silent: on a folder that hosts share it went on saving and
thinning out until its shim stopped it, and nobody stores what it said about that.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from services.gpu_agent import checkpoint_store
from services.gpu_agent.facts import RunCheckpoint


def differences(folder: Path, known: Collection[int], now: float) -> list[RunCheckpoint]:
    """Return the facts that correct `known`, the steps believed to be in `folder`; `now` is Unix time.

    Reads every byte of a checkpoint that nobody knows, so that a damaged one is not announced.
    """
    there = {c.step: c for c in checkpoint_store.list_complete(folder)}
    gone = sorted(set(known) - set(there))
    new = [there[step] for step in sorted(set(there) - set(known))]
    facts = [
        RunCheckpoint(
            seq=0, t=now, step=s, path=str(folder / checkpoint_store.folder_name(s)), deleted=True
        )
        for s in gone
    ]
    facts += [_announced(c) for c in new if checkpoint_store.verify(c.path) is None]
    return facts


def _announced(found: checkpoint_store.Checkpoint) -> RunCheckpoint:
    return RunCheckpoint(
        seq=0,
        t=found.created_at,
        step=found.step,
        kind=found.kind,
        path=str(found.path),
        size_bytes=found.size_bytes,
        manifest_hash=found.manifest_hash,
        metrics=dict(found.metrics),
    )
