"""Stream REWARD applied to the main database: usage adds up, each numbered word of a ledger once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from services.api.db.tables import AlertRow, RewardSourceRow, RewardUsageRow
from shared.events.reward import RewardAlerted, RewardFact, RewardUsed


def apply_rewards(session: Session, events: Sequence[RewardFact]) -> None:
    """Count events in order; one that was counted before changes nothing.

    A gap is no fault here: the ledger says everything again until the broker has it, in order, so what is missing was
    lost with a stream that was wiped after it had been counted.
    """
    for event in events:
        row = session.get(RewardSourceRow, event.source)
        if row is None:
            row = RewardSourceRow(source=event.source, last_seq=0)
            session.add(row)
        if event.seq <= row.last_seq:
            continue
        row.last_seq = event.seq
        if isinstance(event, RewardUsed):
            _add(session, event)
        elif isinstance(event, RewardAlerted):
            _note(session, event)
    session.flush()


def _add(session: Session, event: RewardUsed) -> None:
    key = (event.day, event.job or "", event.provider, event.model)
    row = session.get(RewardUsageRow, key)
    if row is None:
        row = RewardUsageRow(
            day=key[0], job=key[1], provider=key[2], model=key[3], currency=event.currency
        )
        session.add(row)
    row.calls += event.calls
    row.cache_hits += event.cache_hits
    row.deduplicated += event.deduplicated
    row.input_tokens += event.input_tokens
    row.output_tokens += event.output_tokens
    row.cost += event.cost
    # new objects: a change within a JSON value is not seen
    row.errors = {
        code: row.errors.get(code, 0) + event.errors.get(code, 0)
        for code in {*row.errors, *event.errors}
    }
    size = max(len(row.latency), len(event.latency))
    row.latency = [
        (row.latency[n] if n < len(row.latency) else 0)
        + (event.latency[n] if n < len(event.latency) else 0)
        for n in range(size)
    ]


def _note(session: Session, event: RewardAlerted) -> None:
    session.merge(
        AlertRow(
            id=f"{event.source}-{event.seq}",
            at=event.at,
            rule=event.rule,
            severity=event.severity,
            job=event.job,
            provider=event.provider,
            message_en=event.message_en[:2000],
            message_zh=event.message_zh[:2000],
        )
    )
