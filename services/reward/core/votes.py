"""self_play: the completions of one prompt compete, by agreement or in duels. Group-relative, without a reference answer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MIN_GROUP, MAX_GROUP = 2, 16


@dataclass(frozen=True, slots=True)
class Majority:
    """Rewards in the order of the answers, and the share of the largest cluster among all completions (0..1)."""

    rewards: tuple[float, ...]
    share: float


def majority(clusters: Sequence[int | None]) -> Majority:
    """Reward agreement with the largest cluster (TTRL, arXiv 2504.16084): 1 in it, 0 outside, 0 without an answer.

    `clusters`: for each completion the number of its cluster, None where no answer could be extracted. Clusters that tie
    for the largest are worth 0.5 each, so that no order of the completions decides.
    """
    sizes = Counter(c for c in clusters if c is not None)
    if not sizes:
        return Majority((0.0,) * len(clusters), 0.0)
    largest = max(sizes.values())
    winners = {c for c, n in sizes.items() if n == largest}
    worth = 1.0 if len(winners) == 1 else 0.5
    rewards = tuple(worth if c in winners else 0.0 for c in clusters)
    return Majority(rewards, largest / len(clusters))


def pairs(keys: Sequence[str], opponents: int) -> list[tuple[int, int]]:
    """Return the duels (i < j) in which each completion meets at least `opponents` others, or all of them.

    `keys` identify the completions. The draw follows from their hashes alone: the same group always plays the same duels.
    """
    count = len(keys)
    wanted = min(opponents, count - 1)
    order = sorted(range(count), key=lambda n: hashlib.sha256(keys[n].encode()).hexdigest())
    duels: set[tuple[int, int]] = set()
    met = [0] * count
    for distance in range(1, count):
        for place in range(count):
            a, b = order[place], order[(place + distance) % count]
            duel = (min(a, b), max(a, b))
            if duel not in duels and (met[a] < wanted or met[b] < wanted):
                duels.add(duel)
                met[a] += 1
                met[b] += 1
        if min(met) >= wanted:
            break
    return sorted(duels)


def win_rates(
    count: int, results: Sequence[tuple[int, int, float | None]]
) -> tuple[float | None, ...]:
    """Return each completion's mean result: win 1, tie 0.5, loss 0; None where none of its duels was decided.

    `results`: (i, j, what i got), None for a duel without a verdict.
    """
    points: list[list[float]] = [[] for _ in range(count)]
    for i, j, result in results:
        if result is not None:
            points[i].append(result)
            points[j].append(1 - result)
    return tuple(sum(p) / len(p) if p else None for p in points)
