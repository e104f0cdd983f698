"""Counts what judges are asked, and says it: rows and numbered words for the bus in one transaction, once a second."""

from __future__ import annotations

import asyncio
import uuid
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
from sqlalchemy import select
from sqlmodel import Session, col

from services.reward.client import Reply
from services.reward.core.provider_errors import Refusal
from services.reward.providers import Provider
from services.reward.store.tables import LedgerRow, UsageRow, WordRow
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.events import subjects
from shared.events.reward import LATENCY_EDGES_MS, RewardAlerted, RewardUsed
from shared.ids import new_message_id
from shared.log import logger

LOG = logger("reward.meter")
FLUSH_SECONDS: Final = 1.0
ALERT_PAUSE_SECONDS: Final = 600.0
"""The same alert is not said again within this time."""
Key = tuple[str, str, str, str]
"""Day, job (empty: none), provider, model."""


@dataclass
class Sums:
    """What is counted."""

    calls: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cache_hits: int = 0
    deduplicated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    currency: str = "CNY"
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))

    def add(self, other: Sums) -> None:
        """Add another's counts."""
        self.calls += other.calls
        self.cache_hits += other.cache_hits
        self.deduplicated += other.deduplicated
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost += other.cost
        for code, count in other.errors.items():
            self.errors[code] = self.errors.get(code, 0) + count
        self.latency = [a + b for a, b in zip(self.latency, other.latency, strict=True)]


class Meter:
    """`wall`: seconds since the epoch. `said` is called after new words are stored."""

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._open: dict[Key, Sums] = {}
        self._alerts: list[dict[str, Any]] = []
        self._said_at: dict[str, float] = {}
        self.said: Callable[[], None] = lambda: None

    def called(
        self, provider: Provider, model: str, job: str | None, outcome: Reply | Refusal, seconds: float, cost: float
    ) -> None:  # fmt: skip
        """Count one call that was made."""
        sums = self._sums(provider.name, model, job)
        sums.calls += 1
        sums.cost += cost
        sums.currency = provider.currency
        sums.latency[bisect_left(LATENCY_EDGES_MS, seconds * 1e3)] += 1
        if isinstance(outcome, Reply):
            sums.input_tokens += outcome.input_tokens
            sums.output_tokens += outcome.output_tokens
        else:
            code = outcome.code.value
            sums.errors[code] = sums.errors.get(code, 0) + 1

    def spared(self, provider: str, model: str, job: str | None, *, cached: bool) -> None:
        """Count a verdict that cost no call: from the cache, or shared with another item."""
        sums = self._sums(provider, model, job)
        if cached:
            sums.cache_hits += 1
        else:
            sums.deduplicated += 1

    def alert(
        self,
        rule: Literal["provider_failing", "budget_low"],
        severity: Literal["warning", "critical"],
        texts: tuple[str, str],
        *,
        job: str | None = None,
        provider: str | None = None,
    ) -> None:
        """Say that something is wrong, unless that was said in the last ten minutes."""
        key = f"{rule}/{severity}/{job}/{provider}"
        now = self._wall()
        if now - self._said_at.get(key, float("-inf")) < ALERT_PAUSE_SECONDS:
            return
        self._said_at[key] = now
        LOG.warning(rule, severity=severity, job=job, provider=provider, text=texts[0])
        self._alerts.append(
            {"at": datetime.fromtimestamp(now, UTC), "rule": rule, "severity": severity, "job": job,
             "provider": provider, "message_en": texts[0], "message_zh": texts[1]}
        )  # fmt: skip

    async def run(self) -> None:
        """Store what was counted, once a second."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception:
                LOG.exception(
                    "usage_lost"
                )  # counting goes on: money is bounded by the purses, not by this

    async def flush(self) -> None:
        """Store what was counted; where the database does not take it, it stays counted."""
        if not self._open and not self._alerts:
            return
        counted, self._open = self._open, {}
        alerts, self._alerts = self._alerts, []
        try:
            await self._database.write(lambda session: self._store(session, counted, alerts))
        except (DatabaseBusy, DatabaseFull) as error:
            LOG.warning("usage_waits", error=type(error).__name__)
            for key, sums in counted.items():
                self._open.setdefault(key, Sums(currency=sums.currency)).add(sums)
            self._alerts = alerts + self._alerts
            return
        self.said()

    async def usage(self, job: str | None, since: str | None, until: str | None) -> dict[str, Any]:
        """Return the sums by day, job, provider and model; days as `2026-11-26`, both included."""
        statement = select(UsageRow).order_by(col(UsageRow.day).desc()).limit(10_000)
        if job is not None:
            statement = statement.where(col(UsageRow.job) == job)
        if since is not None:
            statement = statement.where(col(UsageRow.day) >= since)
        if until is not None:
            statement = statement.where(col(UsageRow.day) <= until)
        rows = await self._database.read(lambda session: list(session.execute(statement).scalars()))
        items = [
            {"day": r.day, "job_uuid": r.job or None, "provider": r.provider, "model": r.model}
            | orjson.loads(r.sums)
            for r in rows
        ]
        return {"items": items, "latency_edges_ms": list(LATENCY_EDGES_MS)}

    def _sums(self, provider: str, model: str, job: str | None) -> Sums:
        day = datetime.fromtimestamp(self._wall(), UTC).date().isoformat()
        return self._open.setdefault((day, job or "", provider, model), Sums())

    def _store(
        self, session: Session, counted: dict[Key, Sums], alerts: list[dict[str, Any]]
    ) -> None:
        ledger = session.execute(select(LedgerRow)).scalar()
        if ledger is None:
            ledger = LedgerRow(source=uuid.uuid4().hex, last_seq=0)
            session.add(ledger)
        for key, sums in counted.items():
            _add(session, key, sums)
            day, job, provider, model = key
            ledger.last_seq += 1
            used = RewardUsed(
                source=ledger.source, seq=ledger.last_seq, day=day, job=job or None, provider=provider,
                model=model, calls=sums.calls, errors=sums.errors, cache_hits=sums.cache_hits,
                deduplicated=sums.deduplicated, input_tokens=sums.input_tokens,
                output_tokens=sums.output_tokens, cost=sums.cost, currency=sums.currency,
                latency=tuple(sums.latency),
            )  # fmt: skip
            self._say(session, used, used.job, used.provider)
        for alert in alerts:
            ledger.last_seq += 1
            raised = RewardAlerted(source=ledger.source, seq=ledger.last_seq, **alert)
            self._say(session, raised, raised.job, raised.provider)

    def _say(
        self, session: Session, event: RewardUsed | RewardAlerted, job: str | None, provider: str | None
    ) -> None:  # fmt: skip
        session.add(
            WordRow(
                seq=event.seq,
                id=str(new_message_id()),
                subject=subjects.reward(job, provider),
                body=event.model_dump_json(),
                at=self._wall(),
            )
        )


def _add(session: Session, key: Key, sums: Sums) -> None:
    row = session.get(UsageRow, key)
    total = Sums() if row is None else Sums(**orjson.loads(row.sums))
    total.add(sums)
    total.currency = sums.currency
    text = orjson.dumps(total).decode()
    if row is None:
        day, job, provider, model = key
        session.add(UsageRow(day=day, job=job, provider=provider, model=model, sums=text))
    else:
        row.sums = text
