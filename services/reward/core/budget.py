"""Hard budgets: what a call may cost is set aside before it is made, and corrected by what it did cost.

Amounts in the provider's currency. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

WARN_SHARE: Final = 0.8
EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Purse:
    """One budget: of a request, a job, or a day. `limit` None: only counted."""

    limit: float | None
    spent: float = 0.0
    reserved: float = 0.0

    @property
    def remaining(self) -> float | None:
        """Return what may still be set aside."""
        return None if self.limit is None else max(0.0, self.limit - self.spent - self.reserved)


@dataclass(frozen=True, slots=True)
class Reservation:
    """`amount` is set aside in each of `purses`."""

    purses: tuple[str, ...]
    amount: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Purses by name."""

    purses: Mapping[str, Purse] = field(default_factory=dict)


def reserve(
    ledger: Ledger, names: tuple[str, ...], amount: float
) -> tuple[Ledger, Reservation] | str:
    """Set `amount` aside in every purse, or return the name of the first that has not that much."""
    for name in names:
        remaining = ledger.purses[name].remaining
        if remaining is not None and amount > remaining + EPSILON:
            return name
    changed = {
        name: replace(ledger.purses[name], reserved=ledger.purses[name].reserved + amount)
        for name in names
    }
    return Ledger({**ledger.purses, **changed}), Reservation(names, amount)


def settle(ledger: Ledger, reservation: Reservation, cost: float) -> Ledger:
    """Turn a reservation into what the call cost: 0 where the provider did not answer."""
    changed = {}
    for name in reservation.purses:
        purse = ledger.purses[name]
        left = max(0.0, purse.reserved - reservation.amount)
        changed[name] = replace(purse, reserved=left, spent=purse.spent + cost)
    return Ledger({**ledger.purses, **changed})


def warns(before: Purse, after: Purse) -> bool:
    """Tell whether a purse has just passed 80 % of its limit."""
    if before.limit is None or after.limit is None:
        return False
    return before.spent < WARN_SHARE * before.limit <= after.spent


def estimate(text: str) -> int:
    """Return how many tokens a text is at most likely to have: bytes/3 for ASCII, 1 for any other character, and 20 %."""
    other = sum(not c.isascii() for c in text) if not text.isascii() else 0
    return int(((len(text) - other) / 3 + other) * 1.2) + 1


@dataclass(frozen=True, slots=True)
class Price:
    """For a million tokens."""

    input: float
    output: float
    cached_input: float | None = None


def cost_of(price: Price, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
    """Return what a call costs."""
    cached = price.input if price.cached_input is None else price.cached_input
    fresh = max(0, input_tokens - cached_tokens)
    return (fresh * price.input + cached_tokens * cached + output_tokens * price.output) / 1e6
