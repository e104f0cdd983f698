"""The reward service: rules, cache, judges at their limits; beside plain math-verify and the bare openai client."""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai

from benchmarks.row import Row, percentile
from services.reward.core.answers import judge
from services.reward.core.verdict import Verdict
from shared.rewards.rule_specs import MathVerify
from tests.integration.reward.conftest import Service
from tests.provider.process import MockProvider
from tests.provider.server import KEY
from tests.unit.reward.cases import HOSTILE

PROSE = (
    "Let us think about it. We have 12 apples and 5 pears, so x = 3 + 4, and then y = 2 x. " * 12
)
BATCH = 64
PRICES = {"*": {"input": 0.8, "output": 2.0}}
SYMBOLIC = [
    (r"x^2+2x+1", r"(x+1)^2"), (r"2x+1=y", r"y=2x+1"), (r"3+4i", r"4i+3"), (r"\sqrt{x}", r"x^{1/2}"),
    (r"\{x,y\}", r"\{y,x\}"), (r"a^2b", r"ba^2"), (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"), (r"x>3", r"3<x"),
]  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """Return all rows."""
    rows = _library(2_000 if quick else 20_000)
    with tempfile.TemporaryDirectory() as folder, MockProvider() as mock:
        began = time.perf_counter()
        with Service(Path(folder), TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as service:
            while service.client.get("/readyz").status_code != 200:
                time.sleep(0.02)
            rows.append(Row("reward service: start → ready", f"{time.perf_counter() - began:.2f} s", "—", "—", "< 3 s", time.perf_counter() - began < 3, "process, database, verifier warm"))  # fmt: skip
            rows += asyncio.run(
                _served(service, mock, 1.0 if quick else 5.0, 100 if quick else 1000)
            )
    return rows


def _library(count: int) -> list[Row]:
    from math_verify import parse, verify  # noqa: PLC0415 - 0.8 s to import

    logging.disable(logging.CRITICAL)
    rows = []
    for how, end, goal in (
        ("boxed", "\\boxed{%d}", 10_000),
        ("last_number", "It is %d.5 now.", 3_000),
    ):
        spec = MathVerify(type="math_verify", extract=how)  # type: ignore[arg-type]
        texts = [PROSE + end % n for n in range(count)]
        began = time.perf_counter()
        for n, text in enumerate(texts):
            assert isinstance(judge(spec, text, str(n)), Verdict)
        rate = count / (time.perf_counter() - began)
        some = texts[:100]
        began = time.perf_counter()
        for n, text in enumerate(some):
            verify(parse(f"${n}$"), parse(text))
        bare = len(some) / (time.perf_counter() - began)
        rows.append(Row(f"math_verify, `{how}`, numeric: library call, 1 KB completion", f"{rate:,.0f}/s", f"{bare:,.0f}/s", f"{rate / bare:.0f} × as many", f"≥ {goal:,}/s", rate >= goal, "baseline: plain math-verify 0.9, parse twice and verify, main thread"))  # fmt: skip
    logging.disable(logging.NOTSET)
    return rows


async def _served(service: Service, mock: MockProvider, seconds: float, items: int) -> list[Row]:
    async with aiohttp.ClientSession(service.url) as http:
        rows = [
            await _uncached(http, seconds),
            await _symbolic(http, items // 4),
            await _hostile(http),
        ]
        await _provider(http, "free", mock.base)
        mock.behave()
        rows += await _cached(http, seconds)
        rows.append(await _overhead(http, mock, max(20, items // 5)))
        rows.append(await _fan_out(http, mock, items))
        rows += await _limits(http, mock, items)
        rows.append(await _distinct(http, mock))
        rows.append(await _down(http))
    return rows


async def _score(http: aiohttp.ClientSession, body: dict[str, Any] | bytes) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post("/v1/score", data=data, timeout=aiohttp.ClientTimeout(300)) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def _provider(http: aiohttp.ClientSession, name: str, base: str, **more: Any) -> None:
    body = {
        "name": name,
        "api_base": base,
        "api_key": KEY,
        "prices": PRICES,
        "daily_budget": None,
    } | more
    async with http.put(f"/v1/providers/{name}", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def _rate(
    http: aiohttp.ClientSession, bodies: list[bytes], seconds: float, clients: int = 4
) -> float:
    """Return requests a second over `seconds`, by some clients at once."""
    done, began = 0, time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            async with http.post("/v1/score", data=bodies[done % len(bodies)]) as answer:
                await answer.read()
                assert answer.status == 200
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.perf_counter() - began)


async def _uncached(http: aiohttp.ClientSession, seconds: float) -> Row:
    def body(start: int) -> bytes:
        items = [
            {"id": str(n), "completion": PROSE + f"\\boxed{{{start + n}}}", "solution": str(n)}
            for n in range(BATCH)
        ]
        return json.dumps({"reward": {"type": "math_verify"}, "items": items}).encode()

    rate = BATCH * await _rate(http, [body(n) for n in range(0, 640, BATCH)], seconds)
    return Row("rules over HTTP, batches of 64, not cached", f"{rate:,.0f} items/s", "—", "—", "≥ 5,000/s", rate >= 5000, "one service process, clients on the other core")  # fmt: skip


async def _symbolic(http: aiohttp.ClientSession, count: int) -> Row:
    items = []
    for n in range(count):
        gold, text = SYMBOLIC[n % 8]
        if n % 8 in (
            0,
            3,
            5,
        ):  # formulas to which a difference of 0 can be added: no two questions are the same
            text = f"{text}+{n}-{n}"
        items.append({"id": str(n), "completion": f"\\boxed{{{text}}}", "solution": gold})
    distinct = len({(i["completion"], i["solution"]) for i in items})
    began = time.perf_counter()
    found = await _score(http, {"reward": {"type": "math_verify", "compare": "fuzzy"}, "items": items, "options": {"timeout_s": 300.0}})  # fmt: skip
    rate = distinct / (time.perf_counter() - began)
    right = sum(r["reward"] == 1.0 for r in found["results"])
    asked = list(dict.fromkeys((i["completion"], i["solution"]) for i in items))[:60]
    bare = _plain(asked)
    return Row("computer algebra, 8 kinds of formulas, one process", f"{rate:.0f} questions/s, {right} of {count} equal", f"{bare:.0f}/s", f"{rate / bare:.2f} ×", "≥ 30/s", rate >= 30, f"baseline: plain math-verify in one process on {len(asked)} of these questions, parse twice and verify")  # fmt: skip


def _plain(questions: list[tuple[str, str]]) -> float:
    """Return questions a second by plain math-verify, its time-outs off."""
    from math_verify import parse, verify  # noqa: PLC0415 - 0.8 s to import

    logging.disable(logging.CRITICAL)
    began = time.perf_counter()
    for completion, gold in questions:
        wanted = parse(f"${gold}$", parsing_timeout=None)
        verify(wanted, parse(completion, parsing_timeout=None), timeout_seconds=None)
    rate = len(questions) / (time.perf_counter() - began)
    logging.disable(logging.NOTSET)
    return rate


async def _hostile(http: aiohttp.ClientSession) -> Row:
    worst = 0.0
    cases = [(text[:200_000], gold, want) for text, gold, want, _ in HOSTILE]
    for text, gold, want in cases:
        body = {"reward": {"type": "math_verify", "compare": "fuzzy"}, "items": [{"id": "0", "completion": text, "solution": gold}]}  # fmt: skip
        began = time.perf_counter()
        found = await _score(http, body)
        worst = max(worst, time.perf_counter() - began)
        assert found["results"][0]["reward"] == want
    return Row(f"{len(HOSTILE)} hostile answers (towers, factorials, 3,000 brackets): the slowest", f"{worst * 1e3:.0f} ms", "—", "—", "≤ item timeout + 0.5 s", worst < 5.5, "math-verify alone goes on until its own alarm after 5 s; each judged as the rules say, none without a verdict")  # fmt: skip


async def _cached(http: aiohttp.ClientSession, seconds: float) -> list[Row]:
    rows = []
    for size, goal in ((BATCH, 20_000.0), (1, 400.0)):
        items = [{"id": str(n), "completion": f"cached {n}"} for n in range(size)]
        body = {"reward": {"type": "judge", "provider": "free"}, "items": items}
        await _score(http, body)
        rate = await _rate(http, [json.dumps(body).encode()], seconds)
        unit = "items/s" if size > 1 else "requests/s"
        rows.append(Row(f"judge verdicts from the cache over HTTP, batches of {size}", f"{rate * size:,.0f} {unit}", "—", "—", f"≥ {goal:,.0f}/s", rate * size >= goal, "one service process, clients on the other core"))  # fmt: skip
    return rows


def _bare(mock: MockProvider, retries: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url=mock.base, max_retries=retries)


async def _bare_call(client: openai.AsyncOpenAI, text: str) -> bool:
    """Make the same call by the client alone; False where it failed."""
    mark = "<<<ab>>>\n"
    messages: Any = [
        {"role": "system", "content": "json"},
        {"role": "user", "content": mark + "task"},
        {"role": "user", "content": f"x:\n{mark}{text}\n<<</ab>>>"},
    ]
    try:
        await client.chat.completions.create(model="qwen-plus", messages=messages, max_tokens=256)
    except openai.OpenAIError:
        return False
    return True


async def _many(work: Callable[[int], Awaitable[Any]], count: int, at_once: int) -> float:
    """Return the seconds that `count` calls take, some at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(n: int) -> None:
        async with gate:
            await work(n)

    began = time.perf_counter()
    await asyncio.gather(*(one(n) for n in range(count)))
    return time.perf_counter() - began


async def _overhead(http: aiohttp.ClientSession, mock: MockProvider, count: int) -> Row:
    mock.behave(latency=0.0)
    ours, theirs = [], []
    client = _bare(mock, 0)
    for n in range(count):
        body = {"reward": {"type": "judge", "provider": "free"}, "items": [{"id": "0", "completion": f"over {n}"}]}  # fmt: skip
        began = time.perf_counter()
        await _score(http, body)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        await _bare_call(client, f"over {n}")
        theirs.append(time.perf_counter() - began)
        await asyncio.sleep(0.11)  # below the pace, so that nothing waits for it
    await client.close()
    p50 = (statistics.median(ours) - statistics.median(theirs)) * 1e3
    p99 = (percentile(ours, 0.99) - percentile(theirs, 0.99)) * 1e3
    return Row("own overhead of one judge call, over HTTP", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", f"p50 {statistics.median(theirs) * 1e3:.1f} ms", "—", "p50 ≤ 5 ms", p50 <= 5, f"ours less the bare openai client on the same mock, {count} calls in turn; LiteLLM publishes 2-12 ms")  # fmt: skip


async def _fan_out(http: aiohttp.ClientSession, mock: MockProvider, items: int) -> Row:
    mock.behave(latency=0.05)
    await _provider(http, "wide", mock.base, rpm=600_000.0, concurrency=64)
    body = {"reward": {"type": "judge", "provider": "wide"}, "items": [{"id": str(n), "completion": f"wide {n}"} for n in range(items)]}  # fmt: skip
    began = time.perf_counter()
    found = await _score(http, body)
    rate = items / (time.perf_counter() - began)
    most = mock.stats()["most_in_flight"]
    client = _bare(mock, 0)
    bare = items / await _many(lambda n: _bare_call(client, f"bare {n}"), items, 64)
    await client.close()
    assert found["summary"]["ok"] == items
    return Row("judge calls, answer after 50 ms, 64 at once", f"{rate:.0f}/s, most in flight {most}", f"{bare:.0f}/s", f"{rate / bare:.2f} ×", "≥ 200/s, ≤ 64 in flight", rate >= 200 and most <= 64, "baseline: the bare openai client in one process")  # fmt: skip


async def _limits(http: aiohttp.ClientSession, mock: MockProvider, items: int) -> list[Row]:
    mock.behave(latency=0.05, rps=50)
    client = _bare(mock, 2)
    failed = 0

    async def bare(n: int) -> None:
        nonlocal failed
        failed += not await _bare_call(client, f"limit {n}")

    count = min(items, 300)
    await _many(bare, count, 100)
    await client.close()
    naive = mock.stats()
    extra = naive["calls"].get("rate", 0) / naive["total"]
    baseline = f"{failed} of {count} failed, {extra:.0%} of calls refused"
    rows = []
    for told in (True, False):
        name = "told" if told else "untold"
        mock.behave(latency=0.05, rps=50)
        await _provider(http, name, mock.base, rpm=3000.0 if told else None)
        body = {"reward": {"type": "judge", "provider": name}, "items": [{"id": str(n), "completion": f"{name} {n}"} for n in range(items)], "options": {"timeout_s": 200.0}}  # fmt: skip
        began = time.perf_counter()
        found = await _score(http, body)
        seconds = time.perf_counter() - began
        stats = mock.stats()
        refused = stats["calls"].get("rate", 0) / stats["total"]
        lost = items - found["summary"]["ok"]
        late = [n for second, n in stats["by_second"].items() if 10 <= int(second) < int(seconds)]
        rate = items / seconds if told or not late else statistics.mean(late)
        goal = (
            "0 failed, ≤ 2 % refused, ≥ 45/s"
            if told
            else "0 failed, ≤ 15 % refused, ≥ 35/s after 10 s"
        )
        met = lost == 0 and refused <= (0.02 if told else 0.15) and rate >= (45 if told else 35)
        words = "told" if told else "not told"
        rows.append(Row(f"{items} judge calls against a limit of 50/s, {words}", f"{lost} failed, {refused:.1%} refused, {rate:.1f}/s", baseline, "—", goal, met, "baseline: the openai client's own two retries, 100 at once"))  # fmt: skip
    return rows


async def _distinct(http: aiohttp.ClientSession, mock: MockProvider) -> Row:
    mock.behave()
    await _provider(http, "same", mock.base)
    body = {"reward": {"type": "judge", "provider": "same"}, "items": [{"id": str(n), "completion": f"same {n % 100}"} for n in range(1000)]}  # fmt: skip
    found = await _score(http, body)
    calls = mock.stats()["total"]
    return Row("1,000 items, 100 distinct", f"{calls} calls, {found['summary']['cost']:.5f} CNY", "1000 calls", f"{calls / 1000:.2f} ×", "100 calls", calls == 100, "baseline: one call an item")  # fmt: skip


async def _down(http: aiohttp.ClientSession) -> Row:
    await _provider(http, "down", "http://127.0.0.1:9/v1")
    body = {"reward": {"type": "judge", "provider": "down"}, "items": [{"id": str(n), "completion": f"down {n}"} for n in range(256)], "options": {"timeout_s": 60.0}}  # fmt: skip
    began = time.perf_counter()
    found = await _score(http, body)
    seconds = time.perf_counter() - began
    async with http.get("/v1/providers/down") as answer:
        calls = (await answer.json())["state"]["calls"]
    assert found["summary"]["ok"] == 0
    assert all(r["reward"] is None for r in found["results"])
    return Row("256 items, provider down", f"{seconds:.2f} s, {calls} calls", "—", "—", "≤ 10 calls", calls <= 10, "all end as errors, none as 0")  # fmt: skip
