"""`/api/v1/rewards/usage` and `/api/v1/alerts`: what judges were asked, what they cost, and what went wrong."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import Select, select
from sqlmodel import Session, col

from services.api.db.tables import AlertRow, RewardUsageRow
from services.api.deps import Language, Services
from services.api.rewards.usage import Usage, percentile
from shared.errors import FieldProblem, invalid
from shared.specs.problems import plain

router = APIRouter(tags=["rewards"])
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
ROWS_AT_MOST = 10_000


class Latency(BaseModel):
    """Times of calls to a provider in milliseconds; null where there were none."""

    p50: float | None
    p95: float | None
    p99: float | None


class UsageRead(BaseModel):
    """Sums; `day`, `job`, `provider` and `model` as far as the grouping keeps them apart."""

    day: str | None = None
    job: str | None = None
    provider: str | None = None
    model: str | None = None
    calls: int
    errors: dict[str, int]
    error_rate: float
    cache_hits: int
    cache_hit_rate: float
    deduplicated: int
    input_tokens: int
    output_tokens: int
    cost: float
    currency: str
    latency_ms: Latency


class UsagePage(BaseModel):
    """Usage by group, the most expensive first; `truncated` where there was more than could be summed up."""

    items: list[UsageRead]
    truncated: bool


class AlertRead(BaseModel):
    """One alert."""

    id: str
    at: datetime
    rule: str
    severity: str
    job: str | None
    provider: str | None
    message: str


class AlertPage(BaseModel):
    """Alerts, the newest first."""

    items: list[AlertRead]


Group = Literal["day", "job", "provider", "model", "all"]
Text = Annotated[str | None, Query(max_length=128)]


@router.get("/api/v1/rewards/usage", response_model=UsagePage, summary="Usage of judges")
async def usage(
    services: Services,
    job: Text = None,
    provider: Text = None,
    since: Annotated[str | None, Query(alias="from", max_length=10)] = None,
    until: Annotated[str | None, Query(alias="to", max_length=10)] = None,
    by: Group = "provider",
) -> UsagePage:
    """Return calls, latency percentiles, error rate, cache hits and cost, `from` and `to` as UTC days, both included."""
    _check_days(since, until)
    statement = _selected(job, provider, since, until)

    def work(session: Session) -> list[RewardUsageRow]:
        return list(session.execute(statement).scalars())

    rows = await services.main.read(work)
    groups: dict[tuple[str, ...], list[RewardUsageRow]] = {}
    for row in rows[:ROWS_AT_MOST]:
        groups.setdefault(_key(row, by), []).append(row)
    items = [_read(group, by) for group in groups.values()]
    items.sort(key=lambda item: (-item.cost, -item.calls))
    return UsagePage(items=items, truncated=len(rows) > ROWS_AT_MOST)


@router.get("/api/v1/alerts", response_model=AlertPage, summary="Alerts")
async def alerts(
    services: Services,
    lang: Language,
    job: Text = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> AlertPage:
    """Return alerts, the newest first."""
    statement = select(AlertRow).order_by(col(AlertRow.at).desc()).limit(limit)
    if job is not None:
        statement = statement.where(col(AlertRow.job) == job)
    rows = await services.main.read(lambda session: list(session.execute(statement).scalars()))
    return AlertPage(
        items=[
            AlertRead(
                id=row.id,
                at=row.at,
                rule=row.rule,
                severity=row.severity,
                job=row.job,
                provider=row.provider,
                message=row.message_zh if lang == "zh" else row.message_en,
            )
            for row in rows
        ]
    )


def _check_days(since: str | None, until: str | None) -> None:
    """Raise TrainyardError 422 for what is no day, and for days in the wrong order."""
    for name, value in (("from", since), ("to", until)):
        if value is not None and not _is_day(value):
            raise invalid([FieldProblem(name, plain(value), f"{name} must be a day such as 2026-11-26.", f"{name} 应为日期，例如 2026-11-26。", "YYYY-MM-DD", "invalid_day")])  # fmt: skip
    if since is not None and until is not None and since > until:
        raise invalid([FieldProblem("from", since, f"from ({since}) lies after to ({until}); exchange them.", f"from（{since}）晚于 to（{until}），请对调。", f"<= {until}", "out_of_range")])  # fmt: skip


def _is_day(text: str) -> bool:
    try:
        return bool(_DAY.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _selected(
    job: str | None, provider: str | None, since: str | None, until: str | None
) -> Select[Any]:
    statement = select(RewardUsageRow).order_by(col(RewardUsageRow.day).desc())
    if job is not None:
        statement = statement.where(col(RewardUsageRow.job) == job)
    if provider is not None:
        statement = statement.where(col(RewardUsageRow.provider) == provider)
    if since is not None:
        statement = statement.where(col(RewardUsageRow.day) >= since)
    if until is not None:
        statement = statement.where(col(RewardUsageRow.day) <= until)
    return statement.limit(ROWS_AT_MOST + 1)


def _key(row: RewardUsageRow, by: Group) -> tuple[str, ...]:
    """Return what keeps groups apart; sums of two currencies would mean nothing."""
    named = {
        "day": (row.day,),
        "job": (row.job,),
        "provider": (row.provider,),
        "model": (row.provider, row.model),
        "all": (),
    }
    return (*named[by], row.currency)


def _read(rows: list[RewardUsageRow], by: Group) -> UsageRead:
    total = Usage()
    for row in rows:
        total.calls += row.calls
        total.cache_hits += row.cache_hits
        total.deduplicated += row.deduplicated
        total.input_tokens += row.input_tokens
        total.output_tokens += row.output_tokens
        total.cost += row.cost
        for code, count in row.errors.items():
            total.errors[code] = total.errors.get(code, 0) + count
        total.latency += [0] * (len(row.latency) - len(total.latency))
        for place, count in enumerate(row.latency):
            total.latency[place] += count
    first = rows[0]
    asked = total.calls + total.cache_hits
    return UsageRead(
        day=first.day if by == "day" else None,
        job=(first.job or None) if by == "job" else None,
        provider=first.provider if by in ("provider", "model") else None,
        model=first.model if by == "model" else None,
        calls=total.calls,
        errors=total.errors,
        error_rate=sum(total.errors.values()) / total.calls if total.calls else 0.0,
        cache_hits=total.cache_hits,
        cache_hit_rate=total.cache_hits / asked if asked else 0.0,
        deduplicated=total.deduplicated,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        cost=total.cost,
        currency=first.currency,
        latency_ms=Latency(
            p50=percentile(total.latency, 0.5),
            p95=percentile(total.latency, 0.95),
            p99=percentile(total.latency, 0.99),
        ),
    )
