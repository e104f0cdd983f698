"""Rows to core values and back; pydantic reads and writes the dataclasses, so a field is named once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from services.scheduler.core.decisions import DesiredSet
from services.scheduler.core.state import Checkpoint, Host, Job, Moment
from services.scheduler.models import CheckpointRow, HostRow
from shared.events.calls import ControlEntry
from shared.events.requests import JobRequest

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_HOST: TypeAdapter[Host] = TypeAdapter(Host)
REQUEST: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_HOST_APART = {"seen", "runs", "stops"}
"""Kept elsewhere: the time in a column of its own, runs with their jobs, stops in the desired states."""


def job_row(job: Job) -> dict[str, Any]:
    """Return the row of a job; its checkpoints have rows of their own."""
    state = job.state
    data = _JOB.dump_json(job, exclude={"state", "checkpoints"}).decode()
    return {
        "id": job.id,
        "order_n": job.order,
        "status": state.status.value,
        "ended": job.is_ended,
        "finished_at": state.finished_at.timestamp() if state.finished_at else None,
        "state": state.model_dump_json(),
        "data": data,
    }


def job_of(state: str, data: str, checkpoints: Iterable[CheckpointRow]) -> Job:
    """Return the job of its row's texts and its checkpoints' rows.

    The texts are joined and parsed once: after a restart this is done for every unfinished job before anything is
    decided. A boot-clock second means nothing then, so none is kept.
    """
    there = json.dumps([_checkpoint_fields(c) for c in checkpoints])
    job = _JOB.validate_json(f'{data[:-1]},"state":{state},"checkpoints":{there}}}')
    if job.run is not None and job.run.missing_since is not None:
        job = replace(job, run=replace(job.run, missing_since=None))
    return job


def checkpoint_row(job: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the row of a checkpoint."""
    return {
        "job": job,
        "host": checkpoint.host,
        "step": checkpoint.step,
        "attempt": checkpoint.attempt,
        "seq": checkpoint.seq,
        "path": checkpoint.path,
        "kind": checkpoint.kind,
        "best": checkpoint.best,
        "last": checkpoint.last,
        "deleted": checkpoint.deleted,
        "shared_root": checkpoint.shared_root,
        "manifest_hash": checkpoint.manifest_hash,
        "size_bytes": checkpoint.size_bytes,
        "metrics": json.dumps(list(checkpoint.metrics)),
    }


def host_row(host: Host) -> dict[str, Any]:
    """Return the row of a host."""
    data = _HOST.dump_json(host, exclude=_HOST_APART).decode()
    seen = host.seen.wall.timestamp() if host.seen else None
    return {"id": host.id, "data": data, "last_seen": seen}


def host_of(row: HostRow, now: Moment) -> Host:
    """Return the host of its row, its lease counted from `now`: a restart must not make a host silent."""
    data = json.loads(row.data)
    data["boot_seen"] = now.boot
    if row.last_seen is not None:
        wall = datetime.fromtimestamp(row.last_seen, UTC)
        data["seen"] = {"wall": wall.isoformat(), "boot": now.boot}
    return _HOST.validate_json(json.dumps(data))


def desired_entry(decision: DesiredSet, config: dict[str, Any]) -> ControlEntry:
    """Return what is written for the host; its epoch is filled in when that is done."""
    return ControlEntry.model_validate(
        {
            "epoch": "",
            "job": decision.job,
            "attempt": decision.attempt,
            "desired": decision.desired,
            "stop_mode": decision.stop_mode,
            "config": with_paths(config, decision.resolved),
            "model_path": decision.model_path,
            "resolved": dict(decision.resolved),
            "oom_halvings": decision.oom_halvings,
            "resume": decision.resume,
            "checkpoints": decision.checkpoints,
            "gpus": decision.gpus,
            "gpu_uuids": decision.gpu_uuids,
            "secret_names": decision.secret_names,
            "disconnect_policy": decision.disconnect_policy,
            "stop_after_seconds": decision.stop_after_seconds,
            "kill_grace_seconds": decision.kill_grace_seconds,
        }
    )


def with_paths(config: Mapping[str, Any], resolved: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration with folders in place of the checkpoints that it names, also within `rewards`."""
    found = dict(config)
    components = [dict(c) for c in config.get("rewards") or ()]
    for place, path in resolved.items():
        parent, _, field = place.rpartition(".")
        if parent:
            components[int(parent.removeprefix("rewards."))][field] = path
        else:
            found[field] = path
    return found | {"rewards": components} if components else found


def _checkpoint_fields(row: CheckpointRow) -> dict[str, Any]:
    return {**row.model_dump(exclude={"job"}), "metrics": json.loads(row.metrics)}
