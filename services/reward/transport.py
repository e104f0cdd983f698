"""HTTP to providers: only to checked addresses, no redirects, no proxy from the environment, answers of bounded size."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final

import aiohttp
import httpx2
from aiohttp.abc import AbstractResolver, ResolveResult

from services.reward.core.addresses import forbidden

LONGEST_ANSWER: Final = 4 * 1024 * 1024
CONNECT_SECONDS: Final = 5.0


class AddressForbidden(OSError):
    """A host resolves to where no provider may be."""


class CheckedResolver(AbstractResolver):
    """Resolves once and hands out only what was checked, so that a name cannot be rebound in between."""

    def __init__(self, allowed_hosts: frozenset[str]) -> None:
        self._allowed = allowed_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises AddressForbidden where one of them is refused."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results = []
        for kind, _, protocol, _, address in found:
            self.check(host, str(address[0]))
            results.append(
                ResolveResult(
                    hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
            )  # fmt: skip
        return results

    def check(self, host: str, address: str) -> None:
        """Raise AddressForbidden unless `address` may be connected to as `host`."""
        reason = None if host in self._allowed else forbidden(address)
        if reason is not None:
            raise AddressForbidden(
                f"{host} has {reason}; name it in TRAINYARD_REWARD_ALLOW_HTTP_HOSTS if it is a server of your own"
            )

    async def close(self) -> None:
        """Nothing to close."""


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends what the openai client asks for, by aiohttp, which costs a tenth of httpx2's CPU at many calls at once."""

    def __init__(self, allowed_hosts: frozenset[str], connections: int = 128) -> None:
        self._resolver = CheckedResolver(allowed_hosts)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the whole answer. Raises httpx2's own errors, as the openai client expects them."""
        url = str(request.url)
        self._check_literal(request.url.host, request)
        timeout: dict[str, Any] = request.extensions.get("timeout", {})
        try:
            async with self._client().request(
                request.method,
                url,
                headers=request.headers.multi_items(),
                data=request.content or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=CONNECT_SECONDS, sock_read=timeout.get("read")
                ),
            ) as answer:
                body = await answer.content.read(LONGEST_ANSWER + 1)
                while len(body) <= LONGEST_ANSWER and not answer.content.at_eof():
                    body += await answer.content.read(LONGEST_ANSWER + 1 - len(body))
                if len(body) > LONGEST_ANSWER:
                    raise httpx2.DecodingError("the answer is larger than 4 MiB", request=request)
                headers = [(k, v) for k, v in answer.headers.items() if k.lower() not in _REWRITTEN]
                return httpx2.Response(
                    answer.status, headers=headers, content=body, request=request
                )
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise httpx2.ReadTimeout(str(error), request=request) from None
        except aiohttp.ClientConnectorError as error:
            raise httpx2.ConnectError(str(error), request=request) from None
        except (aiohttp.ClientError, AddressForbidden, OSError) as error:
            raise httpx2.ReadError(str(error) or type(error).__name__, request=request) from None

    def _check_literal(self, host: str, request: httpx2.Request) -> None:
        """Check an address in place of a name: nothing resolves it."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        try:
            self._resolver.check(host, host)
        except AddressForbidden as error:
            raise httpx2.ConnectError(str(error), request=request) from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver, limit=self._connections, ttl_dns_cache=60
            )
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
            )  # fmt: skip
        return self._session

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


_REWRITTEN: Final = frozenset({"content-encoding", "transfer-encoding", "content-length"})
"""aiohttp has already undone these."""
