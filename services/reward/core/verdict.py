"""What a reward says of one item: a finite number, or nothing and why. No verdict is never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.rewards.scores import ErrorCode, ItemStatus

SKIPS: Final = frozenset({ErrorCode.GOLD_MISSING, ErrorCode.GOLD_UNPARSEABLE})
"""The item cannot be judged at all: TRL's None, and nobody's failure."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reward` is finite exactly where `error` is None."""

    reward: float | None
    reason: str
    extracted: str | None = None
    error: ErrorCode | None = None
    message: str = ""
    provider_code: str | None = None
    components: Mapping[str, float | None] = field(default_factory=dict)
    partial: bool = False
    fallback: bool = False
    cached: bool = False
    deduplicated: bool = False
    attempts: int = 1
    provider: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would let a failure pass for a score."""
        if (self.reward is None) == (self.error is None):
            raise ValueError("a verdict is a reward or an error, never both or neither")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError("a reward is finite")

    @property
    def status(self) -> ItemStatus:
        """Return ok, skipped (not judgeable) or error (a failure)."""
        if self.error is None:
            return "ok"
        return "skipped" if self.error in SKIPS else "error"


def scored(reward: float, reason: str, extracted: str | None = None) -> Verdict:
    """Return a verdict with a reward."""
    return Verdict(reward, reason, extracted)


def failed(error: ErrorCode, message: str, *, provider_code: str | None = None) -> Verdict:
    """Return a verdict without a reward."""
    return Verdict(None, str(error), None, error, message, provider_code)
