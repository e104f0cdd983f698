"""The reward service's database on SQLite and PostgreSQL: providers, rewards, budgets, kept verdicts, words for the bus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import Session, col

from services.reward.administration import Administration, ProviderBody, RewardBody
from services.reward.client import Reply
from services.reward.core.provider_errors import timed_out
from services.reward.directory import Directory
from services.reward.meter import Meter
from services.reward.store.database import open_reward
from services.reward.store.purses import Purses
from services.reward.store.tables import WordRow
from services.reward.store.verdict_cache import VerdictCache
from shared.db import Database
from shared.keyring import Keyring
from shared.rewards.rule_specs import MathVerify
from shared.settings import Settings

pytestmark = pytest.mark.contract


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = None
    if request.param == "postgres":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        url = make().replace("postgresql://", "postgresql+psycopg://")
    opened = open_reward(Settings(home=tmp_path, database_url=url))
    yield opened
    opened.close()


def administration(database: Database, tmp_path: Path) -> tuple[Administration, Directory]:
    directory = Directory(frozenset(), time.monotonic, lambda *_: None, lambda *_: None)
    keyring = Keyring.load(tmp_path / "master.key")
    return Administration(database, keyring, directory, time.time), directory


async def test_providers_and_rewards_are_there_again(database: Database, tmp_path: Path) -> None:
    first, _ = administration(database, tmp_path)
    body = ProviderBody.model_validate(
        {"name": "p", "api_base": "https://judge.example/v1", "api_key": "sk-0123456789abcdef"}
    )
    assert (await first.put("p", body))["key_last4"] == "cdef"
    stored = await first.store_reward(
        RewardBody(name="math", reward=MathVerify(type="math_verify"))
    )
    second, directory = administration(database, tmp_path)
    await second.load()
    configured = directory.configured("p")
    assert configured is not None
    assert configured.key == "sk-0123456789abcdef"
    assert await second.reward(stored["id"]) == MathVerify(type="math_verify")
    await second.remove("p")
    third, empty = administration(database, tmp_path)
    await third.load()
    assert empty.names() == []


async def test_a_budget_is_never_less_spent_than_before(database: Database) -> None:
    purses = Purses(database, time.time)
    await purses.open("job:a", 10.0, lasting=True)
    reservation = await purses.reserve(["job:a"], 0.1)
    assert not isinstance(reservation, str)
    purses.settle(reservation, 0.05)
    killed = Purses(database, time.time)
    await killed.open("job:a", 10.0, lasting=True)
    assert killed.ledger.purses["job:a"].spent >= 0.05, "what may have been spent counts"
    await purses.flush()
    stopped = Purses(database, time.time)
    await stopped.open("job:a", 10.0, lasting=True)
    assert stopped.ledger.purses["job:a"].spent == pytest.approx(0.05)
    assert await stopped.reserve(["job:a"], 9.96) == "job:a"


async def test_verdicts_are_kept_until_they_expire(database: Database) -> None:
    now = [1000.0]
    cache = VerdictCache(database, lambda: now[0])
    cache.put("k", {"reward": 0.5})
    await cache.close()
    again = VerdictCache(database, lambda: now[0])
    assert await again.get("k") == {"reward": 0.5}
    now[0] += 8 * 24 * 3600
    assert await VerdictCache(database, lambda: now[0]).get("k") is None


async def test_words_are_numbered_without_a_gap_and_sums_add_up(
    database: Database, tmp_path: Path
) -> None:
    admin, directory = administration(database, tmp_path)
    body = ProviderBody.model_validate({"name": "p", "api_base": "https://judge.example/v1"})
    await admin.put("p", body)
    provider = directory.get("p")
    assert provider is not None
    meter = Meter(database, time.time)
    for n in range(3):
        meter.called(provider, "m", "job-1", Reply("x", 10, 2), 0.03, 0.5)
        meter.called(provider, "m", None, timed_out(1.0), 1.0, 0.25)
        meter.spared("p", "m", "job-1", cached=n > 0)
        await meter.flush()
    meter.alert("budget_low", "warning", ("low", "低"), job="job-1")
    meter.alert("budget_low", "warning", ("low", "低"), job="job-1")
    await meter.flush()

    def words(session: Session) -> list[int]:
        return list(session.execute(select(col(WordRow.seq)).order_by(col(WordRow.seq))).scalars())

    assert await database.read(words) == [1, 2, 3, 4, 5, 6, 7], "an alert is not repeated at once"
    found = (await meter.usage("job-1", None, None))["items"]
    assert len(found) == 1
    assert (found[0]["calls"], found[0]["cache_hits"], found[0]["deduplicated"]) == (3, 2, 1)
    assert (found[0]["cost"], found[0]["input_tokens"]) == (1.5, 30)
    every = (await meter.usage(None, None, None))["items"]
    assert sum(i["errors"].get("provider_timeout", 0) for i in every) == 3
