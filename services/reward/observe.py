"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.reward.core.verdict import Verdict


class RewardMetrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.items = Counter(
            "trainyard_reward_items_total",
            "Items scored, by type of reward, status and error code",
            ["reward", "status", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "trainyard_reward_request_seconds",
            "Time of a scoring request",
            registry=self.registry,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
        )
        self.waiting = Gauge(
            "trainyard_reward_items_in_flight", "Items being scored", registry=self.registry
        )

    def count(self, reward: str, verdicts: Sequence[Verdict]) -> None:
        """Count what came of a batch."""
        found: dict[tuple[str, str], int] = {}
        for verdict in verdicts:
            key = (verdict.status, str(verdict.error or ""))
            found[key] = found.get(key, 0) + 1
        for (status, code), number in found.items():
            self.items.labels(reward, status, code).inc(number)
