"""The providers that are configured, and the connections to those in use."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.reward.client import Client
from services.reward.ports import Context
from services.reward.provider_calls import Failing, ProviderCalls, Told
from services.reward.providers import Provider

JOB_PROVIDER: Final = "job"
"""In a spec: the provider that is private to the job."""
PRIVATE_AT_MOST: Final = 256
"""Judges of jobs in memory; the one that was asked longest ago makes room, and its job tells of it again if it goes on."""


@dataclass(frozen=True, slots=True)
class Configured:
    """A provider with its key opened."""

    provider: Provider
    key: str


class Directory:
    """Providers by name; `job:<uuid>` names a private one."""

    def __init__(
        self,
        allowed_hosts: frozenset[str],
        now: Callable[[], float],
        told: Told,
        failing: Failing,
    ) -> None:
        self.allowed_hosts = allowed_hosts
        self._now = now
        self._told = told
        self._failing = failing
        self._known: dict[str, Configured] = {}
        self._private: OrderedDict[str, None] = OrderedDict()
        """Names of private providers, the one that was asked longest ago first."""
        self._calls: dict[str, ProviderCalls] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def put(self, name: str, configured: Configured) -> None:
        """Configure a provider; calls that run end with what they began with."""
        self._known[name] = configured
        self._drop(name)
        if name.startswith(f"{JOB_PROVIDER}:"):
            self._private[name] = None
            self._private.move_to_end(name)
            while len(self._private) > PRIVATE_AT_MOST:
                self.remove(next(iter(self._private)))

    def remove(self, name: str) -> None:
        """Forget a provider."""
        self._known.pop(name, None)
        self._private.pop(name, None)
        self._drop(name)

    def names(self) -> list[str]:
        """Return what is configured."""
        return sorted(self._known)

    def get(self, name: str) -> Provider | None:
        """Return a provider without its key."""
        found = self._known.get(name)
        return None if found is None else found.provider

    def configured(self, name: str) -> Configured | None:
        """Return a provider with its key, for whoever calls it in another way."""
        return self._known.get(name)

    def has_key(self, name: str) -> bool:
        """Tell whether a provider has a key that can be used."""
        found = self._known.get(name)
        return found is not None and bool(found.key)

    def in_use(self, name: str) -> ProviderCalls | None:
        """Return the state of a provider that has been asked."""
        return self._calls.get(name)

    def base_of(self, name: str) -> str | None:
        """Return where a provider lies: verdicts of another one are not its own."""
        found = self._known.get(name)
        return None if found is None else found.provider.api_base

    def currency(self, name: str, context: Context) -> str | None:
        """Return in what a provider's costs are counted."""
        found = self._known.get(self._resolved(name, context))
        return None if found is None else found.provider.currency

    def chain(self, name: str, model: str, context: Context) -> list[tuple[str, str]]:
        """Return (provider, model) in the order to be asked; a provider that is named twice is asked once."""
        first = self._resolved(name, context)
        found = self._known.get(first)
        steps = [(first, model)]
        if found is not None:
            steps += [(step.provider, step.model) for step in found.provider.fallback]
        return list(dict.fromkeys(steps))

    async def calls(self, name: str, context: Context) -> ProviderCalls | None:
        """Return the connections to a provider, or None where there is none of that name."""
        resolved = self._resolved(name, context)
        found = self._known.get(resolved)
        if found is None:
            return None
        if resolved in self._private:
            self._private.move_to_end(resolved)
        if resolved not in self._calls:
            client = Client(found.provider, found.key, self.allowed_hosts)
            self._calls[resolved] = ProviderCalls(
                found.provider, client, self._now, self._told, self._failing
            )
        return self._calls[resolved]

    async def close(self) -> None:
        """Close all connections."""
        for calls in self._calls.values():
            await calls.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)

    def _resolved(self, name: str, context: Context) -> str:
        return f"{JOB_PROVIDER}:{context.job_uuid}" if name == JOB_PROVIDER else name

    def _drop(self, name: str) -> None:
        calls = self._calls.pop(name, None)
        if calls is not None:
            task = asyncio.create_task(calls.close(), name="close-provider")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
