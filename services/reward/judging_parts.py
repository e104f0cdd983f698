"""Everything that judges need, put together: database, keys, providers, budgets, cache, meter, relay."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from services.reward.administration import Administration
from services.reward.core.budget import Purse
from services.reward.core.provider_errors import Refusal
from services.reward.directory import Directory
from services.reward.judges import JudgeDesk
from services.reward.meter import Meter
from services.reward.model_desk import ModelDesk
from services.reward.providers import Provider
from services.reward.relay import Relay
from services.reward.settings import RewardSettings
from services.reward.store.database import open_reward
from services.reward.store.purses import Purses
from services.reward.store.verdict_cache import VerdictCache
from shared.clock import SystemClock
from shared.db import Database
from shared.keyring import Keyring


@dataclass
class Judging:
    """Opened once by main."""

    database: Database
    directory: Directory
    cache: VerdictCache
    purses: Purses
    meter: Meter
    relay: Relay
    desk: JudgeDesk
    models: ModelDesk
    administration: Administration
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @staticmethod
    def open(settings: RewardSettings) -> Judging:
        """Open the database and the key file of the home."""
        database = open_reward(settings)
        meter = Meter(database, time.time)
        relay = Relay(settings, database, SystemClock())
        meter.said = relay.wake

        def failing(provider: Provider, refusal: Refusal, by_hand: bool) -> None:
            meter.alert(
                "provider_failing",
                "critical" if by_hand else "warning",
                _failing_texts(provider, refusal, by_hand=by_hand),
                provider=provider.name,
            )

        def low(name: str, purse: Purse) -> None:
            kind, _, rest = name.partition(":")
            meter.alert(
                "budget_low",
                "warning",
                _budget_texts(name, purse),
                job=rest if kind == "job" else None,
                provider=rest.rpartition(":")[0] if kind == "day" else None,
            )

        def spared(provider: str, model: str, job: str | None, cached: bool) -> None:
            meter.spared(provider, model, job, cached=cached)

        directory = Directory(settings.provider_hosts, time.monotonic, meter.called, failing)
        cache = VerdictCache(database, time.time)
        purses = Purses(database, time.time, low)
        desk = JudgeDesk(directory, cache, purses, time.time, spared)
        roots = settings.roots if settings.reward_is_loopback else settings.restricted_roots
        models = ModelDesk(directory, roots, settings.reward_model_device)
        keyring = Keyring.load(settings.home / "keys" / "master.key")
        administration = Administration(database, keyring, directory, time.time)
        return Judging(
            database, directory, cache, purses, meter, relay, desk, models, administration
        )

    async def start(self) -> None:
        """Take the stored providers into use; begin to count and to say what was counted."""
        await self.administration.load()
        self._tasks = [
            asyncio.create_task(self.meter.run(), name="meter"),
            asyncio.create_task(self.relay.run(), name="relay"),
        ]

    async def stop(self) -> None:
        """Write down what waits, then close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.directory.close()
        await self.models.close()
        await self.meter.flush()
        await self.cache.close()
        await self.purses.flush()
        self.database.close()


def _failing_texts(provider: Provider, refusal: Refusal, *, by_hand: bool) -> tuple[str, str]:
    word = f"{refusal.code}: {refusal.message}"
    if by_hand:
        return (
            f"The provider {provider.name} refuses to judge until somebody acts ({word}). Check its key, access and bill.",
            f"服务商 {provider.name} 拒绝评判，需要人工处理（{word}）。请检查密钥、权限和账单。",
        )
    return (
        f"The provider {provider.name} fails too often and is not asked for a while ({word}).",
        f"服务商 {provider.name} 失败过多，暂时不再调用（{word}）。",
    )


def _budget_texts(name: str, purse: Purse) -> tuple[str, str]:
    limit = purse.limit or 0.0
    return (
        f"The budget {name} has spent {purse.spent:.4g} of {limit:.4g}; at the limit nothing more is judged.",
        f"预算 {name} 已用 {purse.spent:.4g}，上限 {limit:.4g}；达到上限后不再评判。",
    )
