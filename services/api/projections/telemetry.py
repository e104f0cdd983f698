"""Streams applied to the telemetry database: rows, sequence numbers of every attempt, and frame numbers.

Nothing here does I/O but on the session it is given; applying a message again changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.api.projections.main import Item
from services.api.telemetry.ledger import Attempt, Ledger, LiveJob
from services.api.telemetry.records import (
    log_row,
    metric_item,
    packed,
    progress_body,
    sample_row,
    step_number,
    system_row,
    to_json,
)
from shared.bus.port import BusMessage
from shared.events import Event, UnknownEvent
from shared.events.job import JobEventBase
from shared.events.run import (
    BATCH_KIND,
    Batch,
    Kind,
    RunCheckpoint,
    RunExited,
    RunFactBase,
    RunRefused,
)
from shared.events.subjects import PREFIX_OF_KIND, RunSubject
from shared.jobs.lifecycle import Change, JobState

MAX_SERIES = 1000
"""Metric names of one job that are kept; further ones are dropped, with one warning in its log."""
_ENDS = frozenset(
    {Change.REQUEUED, Change.PAUSED, Change.COMPLETED, Change.FAILED, Change.CANCELLED}
)
_NOT_SHOWN = {"job_n", "req_n", "last_step", "final_seq", "retries_spent", "queued_at"}
"""Parts of a state whose change alone makes no status frame."""


@dataclass(slots=True)
class Outcome:
    """What applying some messages came to, besides the rows in the ledger."""

    stale: Counter[str] = field(default_factory=Counter)
    """Items counted and not stored, by reason."""
    rejected: list[tuple[BusMessage, str]] = field(default_factory=list)
    """Messages for the dead-letter table, with the reason."""
    points: int = 0


def apply_jobs(ledger: Ledger, items: Sequence[Item], now: float) -> None:
    """Apply messages of JOBS in order."""
    for message, _, event in items:
        if isinstance(event, JobEventBase):
            apply_job(ledger, event, message.time.timestamp(), now)


def apply_job(ledger: Ledger, event: JobEventBase, at: float, now: float) -> None:
    """Note attempts and allot a status frame; a terminal one waits for the last telemetry. `at`: when the broker had it."""
    state = event.state
    live = ledger.job(state.job)
    if state.job_n <= live.job_n or live.deleted:
        return
    _note_attempt(ledger, live, event, at)
    if live.pending is not None and not state.status.is_terminal:
        finish(ledger, live, now)
    shown = live.pending or live.state
    live.job_n = state.job_n
    if state.status.is_terminal and not state.deleted:
        if live.pending is not None or _differs(shown, state):
            live.pending = state
        live.state = state
        settle(ledger, live)
        return
    live.pending = None
    changed = _differs(shown, state)
    live.state = state
    if changed:
        seq = _status(ledger, live, state, event.at.timestamp())
        live.ended_seq = None
        if state.deleted:
            ledger.end(live, seq)
    if state.deleted:
        live.deleted = 1


def settle(ledger: Ledger, live: LiveJob) -> None:
    """Allot the terminal frame of a job once nothing of its last attempt is missing."""
    if live.pending is not None and not _missing(ledger, live, live.pending):
        _end(ledger, live, live.pending)


def finish(ledger: Ledger, live: LiveJob, now: float) -> None:
    """Allot the terminal frame now; what has not arrived is shown as a gap before it."""
    if live.pending is None:
        return
    missing = _missing(ledger, live, live.pending)
    if missing:
        body = {"reason": "missing_data", "attempt": live.pending.attempt, "missing": missing}
        ledger.add_record(
            live, live.pending.attempt, {"type": "gap", "time": now, "body": to_json(body)}
        )
    _end(ledger, live, live.pending)


def _end(ledger: Ledger, live: LiveJob, state: JobState) -> None:
    at = state.finished_at
    seq = _status(ledger, live, state, at.timestamp() if at else 0.0)
    live.pending = None
    ledger.end(live, seq)


def _missing(ledger: Ledger, live: LiveJob, state: JobState) -> dict[str, dict[str, int]]:
    """Return, by kind, the sequence numbers that the attempt's end named and that are not stored."""
    row = ledger.attempts.get((live.job, state.attempt))
    if not state.final_seq or (row is not None and row.fenced):
        return {}
    stored: dict[Any, int] = dict(row.seq) if row is not None else {}
    return {
        kind: {"from": stored.get(kind, 0) + 1, "to": last}
        for kind, last in state.final_seq.items()
        if stored.get(kind, 0) < last
    }


def _status(ledger: Ledger, live: LiveJob, state: JobState, at: float) -> int:
    return ledger.add_record(
        live, state.attempt, {"type": "status", "time": at, "body": state.model_dump_json()}
    )


def _differs(old: JobState | None, new: JobState) -> bool:
    return old is None or old.model_dump(exclude=_NOT_SHOWN) != new.model_dump(exclude=_NOT_SHOWN)


def _note_attempt(ledger: Ledger, live: LiveJob, event: JobEventBase, at: float) -> None:
    state = event.state
    if state.attempt < 1:
        return
    row = ledger.attempts.get((live.job, state.attempt))
    if row is None and state.host is not None:
        for older in ledger.attempts_of(live.job):
            # on the same host it was over before the newer one began, which goes on from what it had saved
            moved = older.attempt < state.attempt and older.host != state.host
            if moved and not older.ended and not older.fenced:
                older.fenced = True
                older.fenced_at = at
        row = ledger.add_attempt(live, state.attempt, state.host)
    if row is not None and event.change in _ENDS and state.final_seq is not None:
        row.ended = True
    live.latest_attempt = max(live.latest_attempt, state.attempt)


def apply_run_facts(ledger: Ledger, items: Sequence[Item], outcome: Outcome) -> None:
    """Apply messages of RUNS in order: checkpoints, and that an attempt ended."""
    for message, _, event in items:
        if isinstance(event, RunFactBase):
            found = _admit(ledger, message, event, "run", event.seq, outcome)
            if found is None:
                continue
            live, row = found
            if event.seq <= row.seq["run"]:
                continue
            row.seq["run"] = event.seq
            if isinstance(event, RunExited | RunRefused):
                row.ended = True
            elif isinstance(event, RunCheckpoint):
                body = event.model_dump(exclude={"seq", "t", "type", "manifest_hash"})
                columns = {"type": "checkpoint", "step": event.step, "time": event.t}
                ledger.add_record(live, row.attempt, {**columns, "body": to_json(body)})
            settle(ledger, live)


def apply_batches(ledger: Ledger, items: Sequence[Item], outcome: Outcome) -> None:
    """Apply messages of METRICS, LOGS and SAMPLES in order."""
    for message, _, event in items:
        kind = BATCH_KIND.get(str(getattr(event, "type", "")))
        if kind is not None and not isinstance(event, UnknownEvent):
            _apply_batch(ledger, message, event, kind, outcome)


def _apply_batch(
    ledger: Ledger, message: BusMessage, event: Event, kind: Kind, outcome: Outcome
) -> None:
    batch: Batch = event  # type: ignore[assignment]  # its type is in BATCH_KIND
    found = _admit(ledger, message, batch, kind, batch.first_seq, outcome)
    if found is None:
        return
    live, row = found
    fresh = batch.items[row.seq[kind] + 1 - batch.first_seq :]
    if not fresh:
        return
    fallback = message.time.timestamp()
    if kind == "met":
        outcome.points += _metrics(ledger, live, row, fresh, fallback)
    else:
        columns = {"log": log_row, "smp": sample_row, "sys": system_row}[kind]
        for item in fresh:
            ledger.add_record(live, row.attempt, columns(item, fallback))
    row.seq[kind] += len(fresh)
    settle(ledger, live)


def _admit(
    ledger: Ledger,
    message: BusMessage,
    event: Any,
    kind: Kind,
    first_seq: int,
    outcome: Outcome,
) -> tuple[LiveJob, Attempt] | None:
    """Return job and attempt of a message that counts; else count it, and keep what nobody can explain."""
    subject = RunSubject.parse(message.subject)
    size = len(getattr(event, "items", (None,)))
    live = ledger.jobs.get(subject.job)
    row = ledger.attempts.get((subject.job, subject.attempt))
    reason: str | None = None
    if PREFIX_OF_KIND[kind] != subject.prefix or first_seq < 1:
        reason = "malformed"
    elif live is not None and live.deleted:
        reason = "deleted"
    elif live is None or row is None:
        older = live is not None and subject.attempt < live.latest_attempt
        reason = "fenced" if older else "unknown_attempt"
    elif row.host != subject.host:
        reason = "wrong_host"
    elif row.fenced and not _was_before(row, message, kind):
        reason = "fenced"
    elif first_seq > row.seq[kind] + 1:
        reason = "gap"
    if reason is None and live is not None and row is not None:
        return live, row
    outcome.stale[str(reason)] += size
    if reason in {"malformed", "unknown_attempt", "wrong_host"}:
        outcome.rejected.append((message, str(reason)))
    return None


def _was_before(row: Attempt, message: BusMessage, kind: Kind) -> bool:
    """Tell whether the broker had a batch of a fenced attempt before the assignment that fenced it: only our reading was late.

    The next attempt went on from a checkpoint whose metrics were there by then. Facts have their order from the scheduler,
    which does not take them any more.
    """
    return kind != "run" and row.fenced_at is not None and message.time.timestamp() <= row.fenced_at


def _metrics(
    ledger: Ledger,
    live: LiveJob,
    row: Attempt,
    items: Sequence[dict[str, Any]],
    fallback: float,
) -> int:
    points = 0
    progress: dict[str, Any] | None = None
    phase: str | None = None
    time = fallback
    for item in items:
        type_ = item.get("type")
        if type_ == "metric":
            points += _metric_line(ledger, live, row, item, fallback)
        elif type_ == "progress":
            progress = progress_body(item)
        elif type_ == "phase":
            phase = str(item.get("name"))[:64]
    if row.attempt < live.latest_attempt or (progress is None and phase is None):
        return points
    # A gauge: of the progress lines in one batch only the newest is shown.
    shown = dict(live.progress or {})
    shown.update(progress or {})
    if phase is not None:
        shown["phase"] = phase
    live.progress = shown
    ledger.add_record(live, row.attempt, {"type": "progress", "time": time, "body": to_json(shown)})
    return points


def _metric_line(
    ledger: Ledger, live: LiveJob, row: Attempt, item: dict[str, Any], fallback: float
) -> int:
    line = metric_item(item, fallback)
    if line is None:
        return 0
    values = _within_cap(ledger, live, line.values, line.time)
    if not values:
        return 0
    body = {name: packed(value) for name, value in values.items()}
    columns = {
        "attempt": row.attempt,
        "step": line.step,
        "epoch": line.epoch,
        "time": line.time,
        "body": to_json(body),
    }
    ledger.add_line(live, columns, len(values))
    newest = row.attempt >= live.latest_attempt
    step = step_number(line.step)
    for name, value in body.items():
        if newest or name not in live.latest:
            live.latest[name] = [value, step]
    if newest or live.latest_step is None:
        live.latest_step = line.step
    return len(values)


def _within_cap(
    ledger: Ledger, live: LiveJob, values: dict[str, float], time: float
) -> dict[str, float]:
    """Leave out names beyond MAX_SERIES, and say so in the job's log once."""
    if len(live.latest) + len(values) <= MAX_SERIES:
        return values
    room = MAX_SERIES - len(live.latest)
    kept: dict[str, float] = {}
    for name, value in values.items():
        if name in live.latest:
            kept[name] = value
        elif room > 0:
            kept[name] = value
            room -= 1
    if len(kept) < len(values) and not live.capped:
        live.capped = True
        text = (
            f"This job reports more than {MAX_SERIES} metric names; further names are not kept. "
            f"该任务的指标名超过 {MAX_SERIES} 个，其余不再保存。"
        )
        ledger.add_record(
            live, None, {"type": "log", "level": 30, "time": time, "text": text, "body": None}
        )
    return kept
