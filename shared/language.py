"""Which of our two languages a client reads: Accept-Language, RFC 9110 section 12.5.4."""

from __future__ import annotations

from shared.jobs.reasons import Lang

_PARTS_READ = 20


def language(header: str | None) -> Lang:
    """Return `zh` where Chinese is preferred over English, else `en`."""
    best: tuple[float, Lang] = (0.0, "en")
    for part in (header or "").split(",")[:_PARTS_READ]:
        tag, _, parameters = part.strip().partition(";")
        primary = tag.strip().lower().partition("-")[0]
        known: Lang | None = "zh" if primary == "zh" else "en" if primary in {"en", "*"} else None
        weight = _weight(parameters)
        if known is not None and weight > best[0]:
            best = (weight, known)
    return best[1]


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return min(1.0, max(0.0, float(value)))
    except ValueError:
        return 0.0
