"""The mock provider: chat completions with limits and faults; `python -m tests.provider.server` prints its address.

`POST /_control` sets what it does, `GET /_stats` tells what was asked of it. Everything it decides follows from a seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field, fields
from typing import Any

from aiohttp import web

KEY = "sk-mock-0123456789abcdef0123456789abcdef"
PRICE_IN, PRICE_OUT = 0.8, 2.0
"""CNY for a million tokens: those of qwen-plus."""


@dataclass
class Behaviour:
    """What the provider does. Shares are of all calls; limits count in windows of one second, as DashScope's do."""

    latency: float = 0.0
    rps: int | None = None
    tps: int | None = None
    burst: int | None = None
    """Calls within 100 ms beyond which it says that the rate rose too quickly."""
    faults: dict[str, float] = field(default_factory=dict)
    refuse_schema: bool = False
    refuse_json: bool = False
    think: bool = False
    """An open model: without enable_thinking false it refuses."""
    retry_after: float | None = None
    answer: str | None = None
    """What it says instead of a score."""
    sums: bool = False
    """It knows additions: the full score where the last box of the answer holds the sum of the task, else none."""
    seed: int = 0


FAULTS: dict[str, tuple[int, str, str]] = {
    "rate": (429, "limit_requests", "You exceeded your current requests limit"),
    "burst": (429, "limit_burst_rate", "Request rate increased too quickly"),
    "tokens": (429, "insufficient_quota", "Allocated quota exceeded, see #token-limit"),
    "exhausted": (429, "insufficient_quota", "Your plan's quota has been exhausted, reset at 2030-01-01"),
    "concurrency": (429, "Throttling.Concurrency", "Too many requests at a time"),
    "overdue": (400, "Arrearage", "Access denied, your account is in overdue"),
    "bill": (429, "PostpaidBillOverdue", "The bill is overdue"),
    "free": (403, "AllocationQuota.FreeTierOnly", "The free tier is used up"),
    "access": (403, "Model.AccessDenied", "Not allowed for this model"),
    "key": (401, "invalid_api_key", "Incorrect API key provided: {given}"),
    "filter": (400, "data_inspection_failed", "Input text may contain inappropriate content"),
    "parameter": (400, "invalid_parameter_error", "A parameter is not valid"),
    "500": (500, "InternalError", "An internal error"),
    "502": (502, "", ""),
    "503": (503, "ServiceUnavailable", "Too busy"),
}  # fmt: skip


class Mock:
    """State of the server."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.given = ""
        self.reset()

    def reset(self) -> None:
        self.rng = random.Random(self.behaviour.seed)
        self.calls: Counter[str] = Counter()
        self.by_second: Counter[int] = Counter()
        self.recent: deque[float] = deque(maxlen=1000)
        self.window = (0, 0, 0)
        self.in_flight = self.most_in_flight = 0
        self.billed = 0.0
        self.distinct: set[str] = set()
        self.began = time.monotonic()

    async def control(self, request: web.Request) -> web.Response:
        given = await request.json()
        names = {f.name for f in fields(Behaviour)}
        assert set(given) <= names, set(given) - names
        self.behaviour = Behaviour(**given)
        self.reset()
        return web.json_response({})

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "calls": dict(self.calls),
                "total": sum(self.calls.values()),
                "most_in_flight": self.most_in_flight,
                "billed": self.billed,
                "distinct": len(self.distinct),
                "by_second": {str(k): v for k, v in sorted(self.by_second.items())},
                "seconds": time.monotonic() - self.began,
            }
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._chat(request)
        finally:
            self.in_flight -= 1

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        now = time.monotonic()
        fault = self._limited(now, body) or self._drawn()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            fault = "key"
        if fault is None:
            fault = self._unsupported(body)
        if fault in ("rate", "burst", "tokens"):
            return self._error(fault)
        self.given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.behaviour.latency:
            await asyncio.sleep(self.behaviour.latency)
        if fault is not None:
            return await self._broken(request, fault, body)
        return self._answer(body)

    def _limited(self, now: float, body: dict[str, Any]) -> str | None:
        second, calls, tokens = self.window
        if int(now) != second:
            second, calls, tokens = int(now), 0, 0
        size = sum(len(m["content"]) for m in body["messages"]) // 4 + 60
        self.window = (second, calls + 1, tokens + size)
        self.recent.append(now)
        wanted = self.behaviour
        if wanted.rps is not None and calls + 1 > wanted.rps:
            return "rate"
        if wanted.tps is not None and tokens + size > wanted.tps:
            return "tokens"
        near = sum(now - at < 0.1 for at in self.recent)
        return "burst" if wanted.burst is not None and near > wanted.burst else None

    def _drawn(self) -> str | None:
        point = self.rng.random()
        for name, share in self.behaviour.faults.items():
            point -= share
            if point < 0:
                return name
        return None

    def _unsupported(self, body: dict[str, Any]) -> str | None:
        form = (body.get("response_format") or {}).get("type")
        if form == "json_schema" and self.behaviour.refuse_schema:
            return "parameter"
        if form == "json_object" and self.behaviour.refuse_json:
            return "parameter"
        if form == "json_object" and "json" not in json.dumps(body["messages"]).lower():
            return "parameter"
        if self.behaviour.think and body.get("enable_thinking") is not False:
            return "parameter"
        return None

    def _error(self, fault: str) -> web.Response:
        status, code, message = FAULTS[fault]
        message = message.replace("{given}", self.given)
        self.calls[fault] += 1
        headers = {}
        if status == 429 and self.behaviour.retry_after is not None:
            headers["Retry-After"] = f"{self.behaviour.retry_after:g}"
        if not code:
            return web.Response(
                status=status, text="<html>Bad Gateway</html>", content_type="text/html"
            )
        return web.json_response(
            {"error": {"code": code, "message": message, "type": code}},
            status=status,
            headers=headers,
        )

    async def _broken(
        self, request: web.Request, fault: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        if fault in FAULTS:
            return self._error(fault)
        self.calls[fault] += 1
        if fault == "hang":
            await asyncio.sleep(600)
        if fault == "reset":
            self._bill(body, 20)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "garbage":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if fault == "html":
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if fault == "no_choices":
            return web.json_response({"id": "x", "object": "chat.completion", "choices": []})
        if fault == "large":
            return web.Response(text=" " * 6_000_000, content_type="application/json")
        texts = {
            "bad_json": "score: 8/10",
            "out_of_range": '{"score": 11, "reason": "x"}',
            "nan": '{"score": NaN, "reason": "x"}',
            "prose": "I would give this 7 out of 10 because",
        }
        return self._reply(body, texts[fault], "length" if fault == "prose" else "stop")

    def _answer(self, body: dict[str, Any]) -> web.Response:
        self.calls["ok"] += 1
        self.by_second[int(time.monotonic() - self.began)] += 1
        answer = body["messages"][2]["content"].split(">>>\n", 1)[-1].rsplit("\n<<<", 1)[0]
        self.distinct.add(answer)
        text = self.behaviour.answer
        if text is None and "winner" in body["messages"][0]["content"]:
            other = body["messages"][3]["content"].split(">>>\n", 1)[-1].rsplit("\n<<<", 1)[0]
            text = json.dumps({"winner": _winner(answer, other), "reason": "longer"})
        if text is None:
            task = body["messages"][1]["content"]
            score = sum_score(task, answer) if self.behaviour.sums else score_of(answer)
            text = json.dumps({"score": score, "reason": "because"})
        return self._reply(body, text, "stop")

    def _reply(self, body: dict[str, Any], text: str, finish: str) -> web.Response:
        usage = self._bill(body, len(text) // 4 + 1)
        return web.json_response(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish,
                        "message": {"role": "assistant", "content": text},
                    }
                ],
                "usage": usage,
            }
        )

    def _bill(self, body: dict[str, Any], output: int) -> dict[str, int]:
        size = sum(len(m["content"]) for m in body["messages"]) // 4
        self.billed += (size * PRICE_IN + output * PRICE_OUT) / 1e6
        return {"prompt_tokens": size, "completion_tokens": output, "total_tokens": size + output}


def score_of(answer: str) -> int:
    """Return the score of an answer: 0 to 10, by its hash; tests compare what they got with it."""
    return int(hashlib.sha256(answer.encode()).hexdigest(), 16) % 11


def sum_score(task: str, answer: str) -> int:
    """Return 10 where the last box of an answer holds the sum that the task asks for, else 0."""
    asked = re.search(r"(\d+)\+(\d+)=", task)
    boxes = re.findall(r"\\boxed\{(\d+)\}", answer)
    return 10 if asked and boxes and int(boxes[-1]) == int(asked[1]) + int(asked[2]) else 0


def _winner(first: str, second: str) -> str:
    if len(first) == len(second):
        return "tie"
    return "A" if len(first) > len(second) else "B"


def app() -> web.Application:
    mock = Mock()
    made = web.Application(client_max_size=64 * 1024**2)
    made.router.add_post("/v1/chat/completions", mock.chat)
    made.router.add_post("/_control", mock.control)
    made.router.add_get("/_stats", mock.stats)
    return made


async def _main() -> None:
    runner = web.AppRunner(app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    print(f"http://127.0.0.1:{port}", flush=True)
    loop = asyncio.get_running_loop()
    # ends with whoever started it: its standard input closes
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
