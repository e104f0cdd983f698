"""Sequence rules, fencing and terminal frames, on real rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from services.api.projections.telemetry import (
    MAX_SERIES,
    Outcome,
    apply_batches,
    apply_jobs,
    apply_run_facts,
    finish,
)
from services.api.telemetry.acks import answer
from services.api.telemetry.frames import read_frames
from services.api.telemetry.latest import read_latest
from services.api.telemetry.ledger import Ledger
from services.api.telemetry.series import ChartQuery, chart
from services.api.telemetry.tables import attempt
from shared.db import Database
from shared.events.calls import AckQuery, AttemptCursor
from shared.events.run import RunCheckpoint, RunExited, RunStarted, SampleBatch, SystemBatch
from shared.jobs.lifecycle import Change
from tests.unit.telemetry.messages import AT, item, job_event, log, met, metric

NOW = AT.timestamp()


class Bench:
    """Applies messages to one database, each call one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.outcome = Outcome()

    def _write(self, work: Callable[[Ledger], None]) -> None:
        def run(session: Any) -> None:
            ledger = Ledger(session, ["j"])
            work(ledger)
            ledger.flush()

        self.database.submit(run).result(10)

    def jobs(self, *events: Any, after: float = 0.0) -> None:
        items = [item("job.j", e, stream="JOBS", after=after) for e in events]
        self._write(lambda ledger: apply_jobs(ledger, items, NOW))

    def runs(self, *facts: Any, subject: str = "run.h1.j.1") -> None:
        self._write(
            lambda ledger: apply_run_facts(ledger, [item(subject, f) for f in facts], self.outcome)
        )

    def batches(self, *events: Any, subject: str = "met.h1.j.1", after: float = 0.0) -> None:
        items = [item(subject, e, after=after) for e in events]
        self._write(lambda ledger: apply_batches(ledger, items, self.outcome))

    def finish(self) -> None:
        self._write(lambda ledger: finish(ledger, ledger.job("j"), NOW))

    def frames(self) -> list[tuple[str, Any]]:
        found = self.database.read_now(lambda s: read_frames(s, 1, 0, 10**6))
        assert [f.seq for f in found] == list(range(1, len(found) + 1))
        return [(f.type, f.as_json("en")["data"]) for f in found]

    def types(self) -> list[str]:
        return [type_ for type_, _ in self.frames()]

    def seqs(self, attempt: int = 1, host: str = "h1") -> dict[str, int] | None:
        query = AckQuery(attempts=(AttemptCursor(job="j", attempt=attempt),))
        reply = self.database.read_now(lambda s: answer(s, host, query))
        return dict(reply.attempts[0].seq) if reply.attempts else None


@pytest.fixture
def bench(telemetry: Database) -> Bench:
    found = Bench(telemetry)
    found.jobs(job_event(Change.ASSIGNED, 1, attempt=1, host="h1"))
    return found


def test_items_are_stored_once_and_never_beyond_a_gap(bench: Bench) -> None:
    bench.batches(met(1, [metric(1, loss=2.0), metric(2, loss=1.5)]))
    bench.batches(met(2, [metric(2, loss=1.5), metric(3, loss=1.2)]))
    bench.batches(met(5, [metric(5, loss=0.5)]))
    assert bench.types() == ["status", "metric", "metric", "metric"]
    assert bench.seqs() == {"run": 0, "met": 3, "log": 0, "smp": 0, "sys": 0}
    assert bench.outcome.stale == {"gap": 1}
    bench.batches(met(4, [metric(4, loss=0.9), metric(5, loss=0.5)]))
    steps = [data["step"] for type_, data in bench.frames() if type_ == "metric"]
    assert steps == [1, 2, 3, 4, 5]


def test_each_kind_counts_for_itself(bench: Bench) -> None:
    bench.batches(met(1, [metric(1, loss=2.0)]))
    bench.batches(log(1, ["one", "two"]), subject="log.h1.j.1")
    sample = {
        "t": 1.0,
        "type": "sample",
        "step": 1,
        "prompt": "p",
        "completion": "c",
        "reward": 0.5,
    }
    bench.batches(SampleBatch(first_seq=1, items=(sample,)), subject="smp.h1.j.1")
    gpu = {"t": 1.0, "gpus": [{"index": 0, "utilization": 50}], "cpu_percent": 3}
    bench.batches(SystemBatch(first_seq=1, items=(gpu,)))
    assert bench.seqs() == {"run": 0, "met": 1, "log": 2, "smp": 1, "sys": 1}
    frames = dict(bench.frames())
    assert frames["log"] == {"attempt": 1, "level": "INFO", "message": "two"}
    assert frames["sample"]["reward"] == 0.5
    assert frames["system"] == {"attempt": 1, "gpus": gpu["gpus"], "cpu_percent": 3}


def test_another_host_and_an_unknown_attempt_are_counted_not_stored(bench: Bench) -> None:
    bench.batches(met(1, [metric(1, loss=9.0)]), subject="met.h2.j.1")
    bench.batches(met(1, [metric(1, loss=9.0)]), subject="met.h1.j.7")
    bench.batches(met(1, [metric(1, loss=9.0)]), subject="log.h1.j.1")
    bench.batches(met(0, [metric(1, loss=9.0)]))
    assert bench.types() == ["status"]
    assert bench.outcome.stale == {"wrong_host": 1, "unknown_attempt": 1, "malformed": 2}
    assert [reason for _, reason in bench.outcome.rejected] == [
        "wrong_host",
        "unknown_attempt",
        "malformed",
        "malformed",
    ]
    assert bench.seqs(host="h2") is None
    assert bench.seqs(attempt=7) is None, "its assignment may be on its way"


def test_an_attempt_given_up_is_fenced_when_a_newer_one_is_assigned(bench: Bench) -> None:
    bench.batches(met(1, [metric(1, loss=2.0)]))
    bench.jobs(
        job_event(Change.REQUEUED, 2, attempt=1),
        job_event(Change.ASSIGNED, 3, attempt=2, host="h2"),
    )
    bench.batches(met(2, [metric(2, loss=9.0)]), after=0.001)
    bench.batches(met(1, [metric(2, loss=1.0)]), subject="met.h2.j.2", after=0.002)
    assert bench.outcome.stale == {"fenced": 1}
    assert [d["attempt"] for t, d in bench.frames() if t == "metric"] == [1, 2]
    assert bench.seqs(attempt=1) is None


def test_what_the_broker_had_before_an_attempt_was_fenced_is_stored_however_late_it_is_read(
    bench: Bench,
) -> None:
    """JOBS may be read before METRICS: the next attempt goes on from a checkpoint whose metrics wait there."""
    bench.batches(met(1, [metric(1, loss=4.0)]))
    bench.jobs(job_event(Change.ASSIGNED, 2, attempt=2, host="h2"))
    bench.runs(RunExited(seq=1, t=1.0, outcome="stopped", last_seq={"met": 9}))
    assert bench.outcome.stale == {"fenced": 1}, "facts have their order from the scheduler"
    bench.batches(met(3, [metric(3, loss=9.0)]), after=-1.0)
    assert bench.outcome.stale == {"fenced": 1, "gap": 1}
    bench.batches(met(2, [metric(2, loss=3.0)]), after=-1.0)
    bench.batches(met(1, [metric(3, loss=2.0)]), subject="met.h2.j.2", after=2.0)
    bench.batches(met(3, [metric(3, loss=9.0), metric(4, loss=9.0)]), after=3.0)
    assert bench.outcome.stale == {"fenced": 3, "gap": 1}
    bench.jobs(job_event(Change.ASSIGNED, 3, attempt=3, host="h3"), after=5.0)
    bench.batches(met(3, [metric(3, loss=9.0)]), after=4.0)
    assert bench.outcome.stale == {"fenced": 4, "gap": 1}
    result = bench.database.read_now(lambda s: chart(s, "j", ChartQuery()))
    assert (result.x, result.series) == ([1, 2, 3], {"loss": [4.0, 3.0, 2.0]})


def test_an_attempt_fenced_before_its_time_was_noted_stays_shut(bench: Bench) -> None:
    bench.jobs(job_event(Change.ASSIGNED, 2, attempt=2, host="h2"))
    bench.database.submit(lambda s: s.execute(update(attempt).values(fenced_at=None))).result(10)
    bench.batches(met(1, [metric(1, loss=2.0)]), after=-1.0)
    assert bench.outcome.stale == {"fenced": 1}


@pytest.mark.parametrize("by", ["scheduler", "host"])
def test_an_attempt_that_ended_is_stored_to_its_end_however_late(bench: Bench, by: str) -> None:
    if by == "host":
        bench.runs(RunExited(seq=1, t=1.0, outcome="stopped", last_seq={"met": 2}))
    final = {"met": 2} if by == "scheduler" else None
    bench.jobs(
        job_event(Change.PAUSED, 2, attempt=1, final_seq=final),
        job_event(Change.ASSIGNED, 3, attempt=2, host="h2", final_seq=final),
    )
    bench.batches(met(1, [metric(2, loss=1.0)]), subject="met.h2.j.2")
    bench.batches(met(1, [metric(1, loss=2.0), metric(2, loss=9.0)]))
    assert bench.outcome.stale == {}
    result = bench.database.read_now(lambda s: chart(s, "j", ChartQuery()))
    assert (result.x, result.series) == ([1, 2], {"loss": [2.0, 1.0]})
    latest = bench.database.read_now(lambda s: read_latest(s, ["j"]))["j"]
    assert latest.latest_metrics == {"step": 2, "loss": 1.0}


def test_the_terminal_frame_waits_for_the_last_item_of_every_kind(bench: Bench) -> None:
    final = {"run": 1, "met": 2, "log": 1}
    bench.batches(met(1, [metric(1, loss=2.0)]))
    bench.jobs(job_event(Change.COMPLETED, 2, attempt=1, host="h1", final_seq=final))
    bench.runs(RunExited(seq=1, t=1.0, outcome="completed", last_seq={"met": 2, "log": 1}))
    bench.batches(log(1, ["bye"]), subject="log.h1.j.1")
    assert "COMPLETED" not in [d.get("status") for _, d in bench.frames()]
    bench.batches(met(2, [metric(2, loss=1.0)]))
    assert bench.types() == ["status", "metric", "log", "metric", "status"]
    assert bench.frames()[-1][1]["status"] == "COMPLETED"


def test_what_never_comes_is_shown_as_a_gap_before_the_terminal_frame(bench: Bench) -> None:
    bench.batches(met(1, [metric(1, loss=2.0)]))
    bench.jobs(job_event(Change.FAILED, 2, attempt=1, host="h1", final_seq={"met": 3, "log": 2}))
    bench.finish()
    bench.finish()
    assert bench.types() == ["status", "metric", "gap", "status"]
    gap = bench.frames()[2][1]
    assert gap["missing"] == {"met": {"from": 2, "to": 3}, "log": {"from": 1, "to": 2}}
    bench.batches(met(2, [metric(2, loss=1.0)]))
    assert bench.types()[-1] == "metric"


def test_a_retry_ends_the_waiting_and_reopens_the_feed(bench: Bench) -> None:
    bench.jobs(job_event(Change.FAILED, 2, attempt=1, host="h1", final_seq={"met": 1}))
    bench.jobs(job_event(Change.RETRIED, 3, attempt=1))
    assert [(t, d.get("status")) for t, d in bench.frames()] == [
        ("status", "PENDING"),
        ("gap", None),
        ("status", "FAILED"),
        ("status", "PENDING"),
    ]


def test_an_old_job_event_and_one_that_shows_nothing_new_make_no_frame(bench: Bench) -> None:
    bench.jobs(job_event(Change.RUNNING, 3, attempt=1, host="h1"))
    bench.jobs(job_event(Change.ASSIGNED, 2, attempt=1, host="h1"))
    bench.jobs(job_event(Change.RUNNING, 4, attempt=1, host="h1", last_step=20))
    assert [d["status"] for _, d in bench.frames()] == ["PENDING", "RUNNING"]


def test_of_the_progress_in_one_batch_the_newest_is_shown(bench: Bench) -> None:
    steps = [
        {"t": 1.0, "type": "phase", "name": "training"},
        {"t": 1.0, "type": "progress", "step": 1, "total_steps": 9, "epoch": 0.1, "eta_seconds": 8},
        {"t": 2.0, "type": "progress", "step": 2, "total_steps": 9, "epoch": 0.2, "eta_seconds": 7},
    ]
    bench.batches(met(1, steps))
    shown = {"step": 2, "total_steps": 9, "epoch": 0.2, "eta_seconds": 7.0}
    assert bench.frames()[1:] == [("progress", {"attempt": 1, **shown, "phase": "training"})]
    latest = bench.database.read_now(lambda s: read_latest(s, ["j", "other"]))
    assert list(latest) == ["j"]
    assert (latest["j"].progress, latest["j"].phase) == (shown, "training")
    assert latest["j"].last_seq == 2


def test_values_that_are_not_finite_are_null_and_named(bench: Bench) -> None:
    line = metric(1, loss=None, lr=1e-5, grad_norm=None, other=None)
    line["nonfinite"] = {"loss": "nan", "grad_norm": "-inf"}
    bench.batches(met(1, [line]))
    _, data = bench.frames()[1]
    assert data == {
        "attempt": 1,
        "step": 1,
        "epoch": 0.1,
        "metrics": {"loss": None, "lr": 1e-5, "grad_norm": None},
        "nonfinite": {"loss": "nan", "grad_norm": "-inf"},
    }
    latest = bench.database.read_now(lambda s: read_latest(s, ["j"]))["j"].latest_metrics
    assert latest is not None
    assert latest["nonfinite"] == {"loss": "nan", "grad_norm": "-inf"}
    result = bench.database.read_now(lambda s: chart(s, "j", ChartQuery()))
    assert result.series["loss"] == [None]
    assert result.nonfinite == {"loss": {"0": "nan"}, "grad_norm": {"0": "-inf"}}


ODD = [
    {},
    {"type": "metric"},
    {"type": "metric", "step": "x", "metrics": {"a": 1}},
    {"type": "metric", "step": 1e300, "metrics": {"a": 1}},
    {"type": "metric", "step": 1, "metrics": [1]},
    {"type": "metric", "step": 1, "metrics": {"a": "text", "": 1, "b": True}},
    {"type": "metric", "step": 1, "metrics": {"a": 10**400}, "nonfinite": 7},
    {"type": "metric", "step": 1, "metrics": {"nul\x00": 1.0}, "t": "now", "epoch": []},
    {"type": "progress", "step": None, "total_steps": [], "epoch": "x"},
    {"type": "phase", "name": {"a": 1}},
    {"type": "phase"},
    {"type": 12, "x": "\x00"},
]


def test_odd_items_never_stop_a_batch(bench: Bench) -> None:
    bench.batches(met(1, [*ODD, metric(2, loss=1.0)]))
    lines = ({"message": "nul \x00 here"}, {}, {"level": 7, "message": ["x"]}, {"gap": 1})
    bench.batches(log(1, []).model_copy(update={"items": lines}), subject="log.h1.j.1")
    samples = ({"step": "x", "reward": "high", "prompt": "\x00"}, {})
    bench.batches(SampleBatch(first_seq=1, items=samples), subject="smp.h1.j.1")
    seqs = bench.seqs()
    assert seqs is not None
    assert (seqs["met"], seqs["log"], seqs["smp"]) == (len(ODD) + 1, 4, 2)
    assert bench.types().count("metric") == 3


def test_names_beyond_the_cap_are_dropped_with_one_warning(bench: Bench) -> None:
    many = {f"m{i}": float(i) for i in range(MAX_SERIES - 1)}
    bench.batches(met(1, [metric(1, **many), metric(2, extra=1.0, more=2.0), metric(3, more=3.0)]))
    bench.batches(met(4, [metric(4, m0=5.0, other=1.0)]))
    warnings = [d for t, d in bench.frames() if t == "log"]
    assert len(warnings) == 1
    assert "1000" in warnings[0]["message"]
    metrics = [d["metrics"] for t, d in bench.frames() if t == "metric"]
    assert [len(m) for m in metrics] == [MAX_SERIES - 1, 1, 1]
    assert metrics[1:] == [{"extra": 1.0}, {"m0": 5.0}]


def test_checkpoints_of_the_host_become_frames(bench: Bench) -> None:
    bench.runs(
        RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True),
        RunCheckpoint(seq=2, t=0.0, step=20, path="/c/checkpoint-20", metrics={"loss": 1.0}),
    )
    bench.runs(RunCheckpoint(seq=2, t=0.0, step=20, path="/c/checkpoint-20"))
    assert bench.frames()[1:] == [
        (
            "checkpoint",
            {
                "attempt": 1,
                "step": 20,
                "kind": "full",
                "path": "/c/checkpoint-20",
                "size_bytes": 0,
                "metrics": {"loss": 1.0},
                "best": False,
                "last": False,
                "deleted": False,
                "created_at": "1970-01-01T00:00:00.000Z",
            },
        )
    ]


def test_a_deleted_job_takes_nothing_more(bench: Bench) -> None:
    bench.jobs(job_event(Change.COMPLETED, 2, attempt=1, host="h1"))
    bench.jobs(job_event(Change.DELETED, 3, attempt=1, deleted=True))
    bench.batches(met(1, [metric(1, loss=2.0)]))
    assert bench.outcome.stale == {"deleted": 1}
    assert bench.seqs() is None
