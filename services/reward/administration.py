"""What an administrator sets: providers with their keys, and stored rewards. Rows first, memory second."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr
from sqlalchemy import func, select
from sqlmodel import Session, col

from services.reward.answering import Json, version_of
from services.reward.checks import check_reward
from services.reward.core.breaker import state
from services.reward.directory import JOB_PROVIDER, Configured, Directory
from services.reward.providers import ApiBase, Provider, address_problem
from services.reward.store.tables import ProviderRow, RewardRow
from shared.db import Database
from shared.errors import FieldProblem, TrainyardError, invalid, not_found
from shared.keyring import Keyring
from shared.log import logger
from shared.rewards.base import Contract, Name
from shared.rewards.specs import REWARD, Reward

LOG = logger("reward.administration")
_OWNER = "provider"
Key = Annotated[SecretStr, Field(min_length=1, max_length=4096)]


class ProviderBody(Provider):
    """A provider as it is sent; the key is never sent back."""

    api_key: Key | None = None


class RewardBody(Contract):
    """A reward to store under a name."""

    name: Name
    reward: Reward


class JobProviderBody(Contract):
    """A judge private to one job: the guide's `reward_model_api_base`, `reward_model_api_key` and its prices."""

    api_base: ApiBase
    api_key: Key | None = None


class Administration:
    """Over the database, the keyring and the directory of one process. `now`: wall clock in seconds."""

    def __init__(
        self, database: Database, keyring: Keyring, directory: Directory, now: Callable[[], float]
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._directory = directory
        self._now = now
        self._last4: dict[str, str] = {}

    async def load(self) -> None:
        """Take all stored providers into use; one whose key cannot be opened is there without it, and the log says so."""
        rows = await self._database.read(
            lambda session: list(session.execute(select(ProviderRow)).scalars())
        )
        for row in rows:
            provider = Provider.model_validate_json(row.document)
            self._last4[row.name] = row.last4
            self._directory.put(row.name, Configured(provider, self._open(row, provider)))

    async def put(self, name: str, body: ProviderBody) -> Json:
        """Configure a provider. A new base without a key clears the key: a key belongs to the base it was given for.

        Raises TrainyardError 422 for a name that differs or an address that is not allowed.
        """
        provider = Provider.model_validate(body.model_dump(exclude={"api_key"}))
        if name != provider.name or name == JOB_PROVIDER or name.startswith(f"{JOB_PROVIDER}:"):
            raise invalid([_problem("name", f"name is {provider.name!r}; it must be the one in the address, {name!r}, and not {JOB_PROVIDER!r}.", f"name 为 {provider.name!r}，应与地址中的 {name!r} 一致，且不能为 {JOB_PROVIDER!r}。")])  # fmt: skip
        self._check_address(provider.api_base)
        before = await self._database.read(lambda session: session.get(ProviderRow, name))
        row = ProviderRow(name=name, document=provider.model_dump_json(), updated_at=self._now())
        if body.api_key is not None:
            secret = body.api_key.get_secret_value()
            row.key_id, row.ciphertext = self._keyring.encrypt(
                _OWNER, _bound(name, provider.api_base), secret
            )
            row.last4 = secret[-4:] if len(secret) >= 12 else ""
        elif before is not None and _base(before) == provider.api_base:
            row.key_id, row.ciphertext, row.last4 = before.key_id, before.ciphertext, before.last4
        key, last4 = self._open(row, provider), row.last4
        await self._database.write(lambda session: _store(session, row))
        self._last4[name] = last4
        self._directory.put(name, Configured(provider, key))
        return self.shown(name)

    async def remove(self, name: str) -> None:
        """Forget a provider and its key. Raises TrainyardError 404."""
        if self._directory.get(name) is None:
            raise not_found("provider", "评判服务", name)

        def work(session: Session) -> None:
            row = session.get(ProviderRow, name)
            if row is not None:
                session.delete(row)

        await self._database.write(work)
        self._directory.remove(name)
        self._last4.pop(name, None)

    def put_private(self, job: str, body: JobProviderBody) -> None:
        """Configure the judge of one job; it lives in memory only, its key is a secret of the job. Raises TrainyardError."""
        self._check_address(body.api_base)
        name = f"{JOB_PROVIDER}:{job}"
        kind: Literal["dashscope", "openai"] = (
            "dashscope" if "dashscope" in body.api_base else "openai"
        )
        provider = Provider(
            name="job", kind=kind, api_base=body.api_base, daily_budget=None,
            currency="CNY" if kind == "dashscope" else "USD",
        )  # fmt: skip
        key = body.api_key.get_secret_value() if body.api_key else ""
        self._directory.put(name, Configured(provider, key))

    def shown(self, name: str) -> Json:
        """Return a provider with its state and the end of its key. Raises TrainyardError 404."""
        provider = self._directory.get(name)
        if provider is None:
            raise not_found("provider", "评判服务", name)
        told: dict[str, Any] = provider.model_dump(mode="json")
        last4 = self._last4.get(name, "")
        told |= {"key_last4": last4, "has_key": bool(last4) or self._directory.has_key(name)}
        calls = self._directory.in_use(name)
        if calls is not None:
            stats = calls.stats
            told["state"] = {
                "breaker": state(calls.breaker, calls.now()),
                "rate_per_second": round(calls.pace.rate.rate, 3),
                "in_flight": calls.pace.in_flight,
                "waiting": calls.pace.waiting,
                "calls": stats.calls,
                "errors": stats.errors,
                "errors_by_code": dict(stats.by_code),
                "input_tokens": stats.input_tokens,
                "output_tokens": stats.output_tokens,
                "cost": stats.cost,
            }
        return told

    def all(self) -> Json:
        """Return every provider that an administrator configured."""
        names = [n for n in self._directory.names() if not n.startswith(f"{JOB_PROVIDER}:")]
        return {"items": [self.shown(name) for name in names]}

    async def store_reward(self, body: RewardBody) -> Json:
        """Store a reward as the next version of its name. The same spec again is the version that is there already."""
        check_reward(body.reward)
        version = version_of(body.reward)
        made = RewardRow(
            id=f"rw_{uuid.uuid4().hex[:20]}",
            name=body.name,
            number=0,
            version=version,
            spec=json.dumps(REWARD.dump_python(body.reward, mode="json")),
            created_at=self._now(),
        )

        def work(session: Session) -> RewardRow:
            newest: RewardRow | None = session.execute(
                select(RewardRow)
                .where(col(RewardRow.name) == body.name)
                .order_by(col(RewardRow.number).desc())
                .limit(1)
            ).scalar()
            if newest is not None and newest.version == version:
                session.expunge(newest)
                return newest
            made.number = 1 if newest is None else newest.number + 1
            session.add(made)
            session.flush()
            session.expunge(made)
            return made

        return _reward(await self._database.write(work))

    async def rewards(self) -> Json:
        """Return all stored rewards, the newest version of each name first."""
        rows = await self._database.read(
            lambda session: list(
                session.execute(
                    select(RewardRow).order_by(col(RewardRow.name), col(RewardRow.number).desc()).limit(1000)
                ).scalars()
            )
        )  # fmt: skip
        count = await self._database.read(
            lambda session: session.execute(
                select(func.count()).select_from(RewardRow)
            ).scalar_one()
        )
        return {"items": [_reward(row) for row in rows], "count": count}

    async def reward(self, reward_id: str) -> Reward:
        """Return a stored reward by its id. Raises TrainyardError 404."""
        row = await self._database.read(lambda session: session.get(RewardRow, reward_id))
        if row is None:
            raise not_found("stored reward", "已保存的奖励", reward_id)
        return REWARD.validate_json(row.spec)

    def _check_address(self, api_base: str) -> None:
        problem = address_problem(api_base, self._directory.allowed_hosts)
        if problem is not None:
            raise invalid([_problem("api_base", f"api_base is not allowed: {problem[0]}.", f"api_base 不允许：{problem[1]}。")])  # fmt: skip

    def _open(self, row: ProviderRow, provider: Provider) -> str:
        if row.ciphertext is None or row.key_id is None:
            return ""
        try:
            return self._keyring.decrypt(
                row.key_id, row.ciphertext, _OWNER, _bound(row.name, provider.api_base)
            )
        except TrainyardError as error:
            LOG.error("provider_key_unusable", provider=row.name, error=error.detail_en)
            return ""


def _store(session: Session, row: ProviderRow) -> None:
    session.merge(row)


def _bound(name: str, api_base: str) -> str:
    """Return what a key is sealed with: it opens for this provider at this address only."""
    return f"{name} {api_base}"


def _base(row: ProviderRow) -> str:
    return str(json.loads(row.document)["api_base"])


def _reward(row: RewardRow) -> Json:
    return {
        "id": row.id,
        "name": row.name,
        "number": row.number,
        "reward_version": row.version,
        "reward": json.loads(row.spec),
        "created_at": row.created_at,
    }


def _problem(field: str, en: str, zh: str) -> FieldProblem:
    return FieldProblem(field, None, en, zh)
