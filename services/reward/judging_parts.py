"""Everything that judges need, put together: database, keys, providers, budgets, cache."""

from __future__ import annotations

import time
from dataclasses import dataclass

from services.reward.administration import Administration
from services.reward.core.budget import Purse
from services.reward.directory import Directory
from services.reward.judges import JudgeDesk
from services.reward.settings import RewardSettings
from services.reward.store.database import open_reward
from services.reward.store.purses import Purses
from services.reward.store.verdict_cache import VerdictCache
from shared.db import Database
from shared.keyring import Keyring
from shared.log import logger

LOG = logger("reward.judging")


@dataclass
class Judging:
    """Opened once by main."""

    database: Database
    directory: Directory
    cache: VerdictCache
    purses: Purses
    desk: JudgeDesk
    administration: Administration

    @staticmethod
    def open(settings: RewardSettings) -> Judging:
        """Open the database and the key file of the home."""
        database = open_reward(settings)
        keyring = Keyring.load(settings.home / "keys" / "master.key")
        directory = Directory(settings.provider_hosts, time.monotonic, lambda *_: None)
        cache = VerdictCache(database, time.time)
        purses = Purses(database, time.time, _warn)
        desk = JudgeDesk(directory, cache, purses, time.time)
        administration = Administration(database, keyring, directory, time.time)
        return Judging(database, directory, cache, purses, desk, administration)

    async def start(self) -> None:
        """Take the stored providers into use."""
        await self.administration.load()

    async def stop(self) -> None:
        """Write down what waits, then close."""
        await self.directory.close()
        await self.cache.close()
        await self.purses.flush()
        self.database.close()


def _warn(name: str, purse: Purse) -> None:
    LOG.warning("budget_passes_80_percent", purse=name, spent=purse.spent, limit=purse.limit)
