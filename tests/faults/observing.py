"""Fills an `Observation` from every side: REST, the three SQL files, the host's disk and the process table."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from services.api.telemetry.chunks import floats
from services.gpu_agent import checkpoint_store
from services.gpu_agent.processes import is_locked
from tests.e2e.stack import ROOT, Stack
from tests.faults.checker import AttemptSeen, CheckpointSeen, JobSeen, Observation
from tests.faults.watcher import Watcher
from tests.faults.workload import Workload, insist

Row = tuple[Any, ...]
_LOADS = (
    "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
    "for p in sys.argv[1:]: M.from_pretrained(p); T.from_pretrained(p); print('ok', flush=True)"
)


def observe(stack: Stack, workload: Workload, watcher: Watcher, *, load: int = 3) -> Observation:
    """Wait until spools and outboxes have come to rest, then look at everything; `load` checkpoints are loaded."""
    _rest(stack, 60)
    watcher.sample()
    uuids = [row[0] for row in _rows(stack.home / "api" / "main.db", "SELECT uuid FROM job")]
    jobs = [_job(stack, workload, watcher, u) for u in uuids if u in workload.bodies]
    jobs += [_unasked(u) for u in uuids if u not in workload.bodies]
    return Observation(
        acknowledged=tuple(workload.bodies),
        jobs=tuple(_with_loads(jobs, load)),
        overlaps=tuple(sorted(watcher.overlaps)),
        orphans=tuple(_run_processes(stack.home, 20)),
        held_locks=tuple(held_locks(stack.home)),
        unpublished=_unpublished(stack.home),
        dead_letters=_count(
            stack.home / "api" / "telemetry.db", "SELECT count(*) FROM dead_letter"
        ),
    )


def processes_of(home: Path) -> dict[int, str]:
    """Return the live processes that belong to the stack of `home`: by environment, which forks inherit."""
    mark = f"TRAINYARD_HOME={home}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if words:  # a zombie has none
                found[int(folder.name)] = words
    return found


def leftovers(home: Path, seconds: float) -> list[str]:
    """Return what still lives of a stack that was stopped, after waiting up to `seconds` for it to be gone."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"{pid} {words}" for pid, words in sorted(left.items())]


def held_locks(home: Path) -> list[str]:
    """Return the job and slot locks that someone holds."""
    agent = home / "agents" / "local"
    paths = [*agent.glob("jobs/*/lock*"), *agent.glob("locks/*.lock")]
    # asked twice: the agent looks at locks by taking them for a moment
    return [str(p.relative_to(home)) for p in paths if is_locked(p) and _is_still_locked(p)]


def _is_still_locked(path: Path) -> bool:
    for _ in range(20):
        time.sleep(0.01)
        if not is_locked(path):
            return False
    return True


def _run_processes(home: Path, seconds: float) -> list[str]:
    """Return shims and trainers that live although every job has ended."""
    deadline = time.monotonic() + seconds
    while True:
        left = [f"{p} {w}" for p, w in processes_of(home).items() if _is_run(w, home)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _is_run(words: str, home: Path) -> bool:
    return f"{home}/agents/local/jobs/" in words or "services.gpu_agent.trainers" in words


def _rest(stack: Stack, seconds: float) -> None:
    """Wait until nothing is on its way any more; what then still is, the checker reports."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if _unpublished(stack.home) == 0 and all(_is_confirmed(f) for f in _folders(stack.home)):
            return
        time.sleep(0.2)


def _folders(home: Path, job: str = "*") -> list[Path]:
    found = (home / "agents" / "local" / "jobs").glob(f"{job}/attempts/*")
    return sorted(found, key=lambda f: (f.parent.parent.name, int(f.name)))


def _is_confirmed(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "relay.json").read_text()).get("done"))
    except (OSError, ValueError):
        return False


def _unpublished(home: Path) -> int:
    mine = _count(home / "api" / "main.db", "SELECT count(*) FROM request WHERE epoch IS NULL")
    return mine + _count(
        home / "scheduler.db", "SELECT count(*) FROM outbox WHERE published IS NULL"
    )


def _job(stack: Stack, workload: Workload, watcher: Watcher, uuid: str) -> JobSeen:
    shown = insist(lambda: stack.client.jobs.get(uuid))
    history = _history(stack, uuid)
    main, own = stack.home / "api" / "main.db", stack.home / "scheduler.db"
    body = workload.bodies[uuid]
    return JobSeen(
        uuid=uuid,
        rest=shown.status,
        api_sql=_one(main, "SELECT status FROM job WHERE uuid = ?", uuid),
        scheduler_sql=_one(own, "SELECT status FROM jobs WHERE id = ?", uuid),
        max_steps=body["max_steps"],
        save_steps=body["save_steps"],
        reason=shown.reason,
        cancel_accepted=uuid in workload.cancels,
        events=history,
        attempts=tuple(_attempt(stack.home, watcher, f) for f in _folders(stack.home, uuid)),
        checkpoints=tuple(
            CheckpointSeen(c.step, c.path, checkpoint_store.verify(Path(c.path)))
            for c in insist(lambda: stack.client.jobs.checkpoints(uuid))
        ),
    )


def _history(stack: Stack, uuid: str) -> tuple[tuple[int, str, str, int], ...]:
    found: list[tuple[int, str, str, int]] = []
    while True:
        after = found[-1][0] if found else 0
        path = f"/api/v1/jobs/{uuid}/events?after={after}&limit=200"
        page = insist(lambda path=path: stack.client.call("GET", path))  # type: ignore[misc]
        found += [(e["n"], e["type"].removeprefix("job."), e["status"], e["attempt"]) for e in page]
        if not page:
            return tuple(found)


def _unasked(uuid: str) -> JobSeen:
    return JobSeen(uuid, "COMPLETED", "COMPLETED", "COMPLETED", max_steps=0, save_steps=1)


def _attempt(home: Path, watcher: Watcher, folder: Path) -> AttemptSeen:
    job, number = folder.parent.parent.name, int(folder.name)
    facts = _lines(folder / "facts.jsonl")
    kinds = tuple(str(f["type"]).split(".")[1] for f in facts)
    started = next((f for f in facts if f["type"] == "run.started.v1"), None)
    logged = tuple(
        e["step"] for e in _lines(folder / "events.jsonl")
        if e["type"] == "metric" and ("loss" in e["metrics"] or "loss" in e.get("nonfinite", {}))
    )  # fmt: skip
    return AttemptSeen(
        number=number,
        logged=logged,
        stored=stored_steps(home, job, number),
        started=started is not None,
        resume_step=None if started is None else started.get("resume_step"),
        resume_problem=watcher.resume_problem(job, number),
        facts=kinds,
        fact_numbers=tuple(f["seq"] for f in facts),
        confirmed=_is_confirmed(folder),
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


def _with_loads(jobs: list[JobSeen], count: int) -> list[JobSeen]:
    """Load the newest checkpoint of some jobs in a fresh process, and note those that do not load."""
    chosen = [j.checkpoints[-1].path for j in jobs if j.checkpoints][:count]
    if not chosen:
        return jobs
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOADS, *chosen],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    bad = set(chosen[done.stdout.count("ok\n") :])
    return [
        JobSeen(
            **{f: getattr(job, f) for f in JobSeen.__dataclass_fields__ if f != "checkpoints"},
            checkpoints=tuple(
                CheckpointSeen(c.step, c.path, c.problem or f"does not load: {done.stderr[-300:]}")
                if c.path in bad
                else c
                for c in job.checkpoints
            ),
        )
        for job in jobs
    ]


def _rows(path: Path, query: str, *values: Any) -> list[Row]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as db:
        return list(db.execute(query, values))


def _count(path: Path, query: str) -> int:
    return int(_rows(path, query)[0][0])


def _one(path: Path, query: str, *values: Any) -> str:
    rows = _rows(path, query, *values)
    return str(rows[0][0]) if rows else "absent"
