"""From verdicts to what is sent: plain data in the shape of `shared.rewards.scores.ScoreResponse`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from services.reward.core.verdict import Verdict
from shared.rewards.scores import RETRYABLE
from shared.rewards.specs import REWARD, Reward

Json = dict[str, Any]


def version_of(reward: Reward) -> str:
    """Return what names exactly this reward: the same spec, the same version."""
    canonical = orjson.dumps(REWARD.dump_python(reward, mode="json"), option=orjson.OPT_SORT_KEYS)
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def result(item_id: str, verdict: Verdict, latency_ms: float) -> Json:
    """Return one entry of `results`; `reward` is null wherever there is no verdict."""
    error = None
    if verdict.error is not None:
        error = {
            "code": verdict.error,
            "retryable": RETRYABLE[verdict.error],
            "message": verdict.message,
            "provider_code": verdict.provider_code,
        }
    return {
        "id": item_id,
        "status": verdict.status,
        "reward": verdict.reward,
        "components": dict(verdict.components),
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        "error": error,
        "partial": verdict.partial,
        "cached": verdict.cached,
        "deduplicated": verdict.deduplicated,
        "attempts": verdict.attempts,
        "provider": verdict.provider,
        "fallback": verdict.fallback,
        "latency_ms": latency_ms,
        "usage": {"input_tokens": verdict.input_tokens, "output_tokens": verdict.output_tokens},
        "cost": verdict.cost,
    }


def summary(
    verdicts: Sequence[Verdict], duration_ms: float, currency: str, budget_remaining: float | None
) -> Json:
    """Return the counts over a batch."""
    statuses = [v.status for v in verdicts]
    return {
        "ok": statuses.count("ok"),
        "error": statuses.count("error"),
        "skipped": statuses.count("skipped"),
        "cached": sum(v.cached for v in verdicts),
        "deduplicated": sum(v.deduplicated for v in verdicts),
        "fallback": sum(v.fallback for v in verdicts),
        "cost": sum(v.cost for v in verdicts),
        "currency": currency,
        "budget_remaining": budget_remaining,
        "duration_ms": duration_ms,
    }


def encode(document: Json) -> bytes:
    """Return JSON; text that is no Unicode (half a surrogate) is written with its replacement character."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return orjson.dumps(_sound(document))


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_sound(k): _sound(v) for k, v in value.items()}
    return [_sound(v) for v in value] if isinstance(value, (list, tuple)) else value
