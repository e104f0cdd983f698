"""Fills an `Observation` from every side: REST, the three SQL files, the host's disk and the process table."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from services.api.telemetry.chunks import floats
from services.gpu_agent import checkpoint_store
from tests.e2e.stack import ROOT, Stack
from tests.faults.checker import (
    CLOSES_ATTEMPT,
    AttemptSeen,
    CheckpointSeen,
    Closing,
    JobSeen,
    Observation,
)
from tests.faults.process_table import held_locks, strays
from tests.faults.watcher import Watcher, jobs_folder
from tests.faults.workload import Workload, insist

Row = tuple[Any, ...]
ENDS = ("run.exited.v1", "run.refused.v1")
_LOADS = """
import sys
from transformers import AutoModelForCausalLM as M, AutoTokenizer as T
for path in sys.stdin.read().splitlines():
    try:
        M.from_pretrained(path), T.from_pretrained(path)
    except Exception as error:
        print(path, repr(error)[:300], sep="\\t", flush=True)
print("done")
"""


@dataclass(frozen=True)
class Sight:
    """From where it is looked: the stack, its hosts' homes (the embedded one first), and what was noted on the way."""

    stack: Stack
    workload: Workload
    watcher: Watcher
    homes: Sequence[Path]
    stored_before: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    """What was stored of attempts whose host was frozen while a later attempt ran."""
    heard_until: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """The last steps of attempts before their host heard nothing any more."""
    never_complete: Sequence[str] = ()
    roots: Sequence[tuple[Path, int]] = ()
    """(home, pid of the process above all others) of each host."""
    beside: Collection[int] = ()
    """Processes of a home that somebody else has started and ends."""


def observe(sight: Sight) -> Observation:
    """Wait until spools and outboxes have come to rest, then look at everything; every listed checkpoint is loaded."""
    stack, workload = sight.stack, sight.workload
    _rest(sight, 240)
    sight.watcher.sample()
    uuids = [row[0] for row in _rows(stack.home / "api" / "main.db", "SELECT uuid FROM job")]
    jobs = [_job(sight, u) for u in uuids if u in workload.bodies]
    jobs += [_unasked(u) for u in uuids if u not in workload.bodies]
    return Observation(
        acknowledged=tuple(workload.bodies),
        jobs=tuple(_with_loads(jobs)),
        overlaps=sight.watcher.overlaps,
        never_complete=tuple(sight.never_complete),
        orphans=tuple(
            text for home, root in sight.roots for text in strays(home, root, 60, sight.beside)
        ),
        held_locks=tuple(text for home in sight.homes for text in held_locks(home)),
        unpublished=unpublished(stack.home),
        starved=sight.watcher.starved,
        dead_letters=_count(
            stack.home / "api" / "telemetry.db", "SELECT count(*) FROM dead_letter"
        ),
    )


def _rest(sight: Sight, seconds: float) -> None:
    """Wait until nothing is on its way any more; what then still is, the checker reports."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if unpublished(sight.stack.home) == 0 and all(_is_confirmed(f) for f in _folders(sight)):
            return
        time.sleep(0.2)


def _folders(sight: Sight, job: str = "*") -> list[Path]:
    found = [f for home in sight.homes for f in jobs_folder(home).glob(f"{job}/attempts/*")]
    return sorted(found, key=lambda f: (f.parent.parent.name, int(f.name)))


def _is_confirmed(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "relay.json").read_text()).get("done"))
    except (OSError, ValueError):
        return False


def unpublished(home: Path) -> int:
    """Return how many rows of the two outboxes the broker does not have."""
    own = _count(home / "scheduler.db", "SELECT count(*) FROM outbox WHERE published IS NULL")
    return unsent_requests(home) + own


def unsent_requests(home: Path) -> int:
    """Return how many acknowledged requests the broker does not have."""
    return _count(home / "api" / "main.db", "SELECT count(*) FROM request WHERE epoch IS NULL")


def _job(sight: Sight, uuid: str) -> JobSeen:
    stack, workload = sight.stack, sight.workload
    shown = insist(lambda: stack.client.jobs.get(uuid))
    main, own = stack.home / "api" / "main.db", stack.home / "scheduler.db"
    body = workload.bodies[uuid]
    events = _history(stack, uuid)
    return JobSeen(
        uuid=uuid,
        rest=shown.status,
        api_sql=_one(main, "SELECT status FROM job WHERE uuid = ?", uuid),
        scheduler_sql=_one(own, "SELECT status FROM jobs WHERE id = ?", uuid),
        max_steps=body["max_steps"],
        save_steps=body["save_steps"],
        reason=shown.reason,
        cancel_accepted=uuid in workload.cancels,
        cancelled_at=workload.cancelled_at.get(uuid),
        finished_at=shown.finished_at.timestamp() if shown.finished_at else None,
        events=tuple((e["n"], _change(e), e["status"], e["attempt"]) for e in events),
        closings=tuple(
            Closing(e["attempt"], _change(e), e["reason"], _unix(e["time"]))
            for e in events
            if _change(e) in CLOSES_ATTEMPT
        ),
        attempts=tuple(_attempt(sight, f) for f in _folders(sight, uuid)),
        checkpoints=tuple(
            CheckpointSeen(c.step, c.path, checkpoint_store.verify(Path(c.path)))
            for c in insist(lambda: stack.client.jobs.checkpoints(uuid))
        ),
    )


def _history(stack: Stack, uuid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["n"] if found else 0
        path = f"/api/v1/jobs/{uuid}/events?after={after}&limit=200"
        page = insist(lambda path=path: stack.client.call("GET", path))  # type: ignore[misc]
        found += page
        if not page:
            return found


def _change(event: dict[str, Any]) -> str:
    return str(event["type"]).removeprefix("job.")


def _unix(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


def _unasked(uuid: str) -> JobSeen:
    return JobSeen(uuid, "COMPLETED", "COMPLETED", "COMPLETED", max_steps=0, save_steps=1)


def _attempt(sight: Sight, folder: Path) -> AttemptSeen:
    job, number = folder.parent.parent.name, int(folder.name)
    facts = _lines(folder / "facts.jsonl")
    kinds = tuple(str(f["type"]).split(".")[1] for f in facts)
    started = next((f for f in facts if f["type"] == "run.started.v1"), None)
    lines = [
        e for e in _lines(folder / "events.jsonl")
        if e["type"] == "metric" and ("loss" in e["metrics"] or "loss" in e.get("nonfinite", {}))
    ]  # fmt: skip
    return AttemptSeen(
        number=number,
        logged=tuple(e["step"] for e in lines),
        stored=stored_steps(sight.stack.home, job, number),
        started=started is not None,
        resume_step=None if started is None else started.get("resume_step"),
        resume_problem=sight.watcher.resume_problem(job, number),
        facts=kinds,
        fact_numbers=tuple(f["seq"] for f in facts),
        ended_at=next((f["t"] for f in facts if f["type"] in ENDS), 0.0),
        confirmed=_is_confirmed(folder),
        stored_before=sight.stored_before.get((job, number)),
        heard_until=sight.heard_until.get((job, number)),
        last_line=lines[-1]["t"] if lines else 0.0,
        last_alive=sight.watcher.last_alive.get((job, number), 0.0),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file; a torn last one was never said."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def stored_steps(home: Path, job: str, attempt: int) -> tuple[int, ...]:
    """Return the steps of `loss` that the api has stored for an attempt, in the order stored."""
    path = home / "api" / "telemetry.db"
    chunks = _rows(
        path,
        "SELECT c.step, c.last_seq FROM metric_chunk c JOIN job_live j ON j.id = c.job_id"
        " WHERE j.job = ? AND c.attempt = ? AND c.name = 'loss' ORDER BY c.first_seq",
        job, attempt,
    )  # fmt: skip
    sealed = max((last for _, last in chunks), default=-1)
    lines = _rows(
        path,
        "SELECT m.step, m.body FROM metric_line m JOIN job_live j ON j.id = m.job_id"
        " WHERE j.job = ? AND m.attempt = ? AND m.seq > ? ORDER BY m.seq",
        job, attempt, sealed,
    )  # fmt: skip
    steps = [step for blob, _ in chunks for step in floats(blob).tolist()]
    steps += [step for step, body in lines if "loss" in json.loads(body)]
    return tuple(int(step) for step in steps)


def _with_loads(jobs: list[JobSeen]) -> list[JobSeen]:
    """Load every listed checkpoint in a fresh process, and note those that do not load."""
    paths = [c.path for j in jobs for c in j.checkpoints if c.problem is None]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOADS],
        input="\n".join(paths), cwd=ROOT, capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    *told, last = done.stdout.splitlines()
    if last != "done":
        raise ValueError(f"loading broke off: {done.stderr[-500:]}")
    bad = dict(line.split("\t", 1) for line in told)
    return [
        replace(job, checkpoints=tuple(_loaded(c, bad) for c in job.checkpoints)) for job in jobs
    ]


def _loaded(checkpoint: CheckpointSeen, bad: Mapping[str, str]) -> CheckpointSeen:
    if checkpoint.path not in bad:
        return checkpoint
    return replace(checkpoint, problem=f"does not load: {bad[checkpoint.path]}")


def _rows(path: Path, query: str, *values: Any) -> list[Row]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=120)) as db:
        return list(db.execute(query, values))


def _count(path: Path, query: str) -> int:
    return int(_rows(path, query)[0][0])


def _one(path: Path, query: str, *values: Any) -> str:
    rows = _rows(path, query, *values)
    return str(rows[0][0]) if rows else "absent"
