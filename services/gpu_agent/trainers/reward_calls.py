"""Calls of the reward service, as it may be: busy, restarted on another port, or away. What is not answered has no verdict."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from pydantic import ValidationError

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.rollouts import Verdict
from shared.jobs.reasons import Reason
from shared.rewards.scores import ScoreResponse

AWAY_SECONDS: Final = 120.0
"""So long a service that does not answer is asked again; then the batch has no verdicts, and training goes on."""
ANSWER_SECONDS: Final = 30.0
"""Beyond the time that a batch itself may take: how long the answer may be on its way."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
AWAY: Final = "service_away"
"""Error code of a verdict that could not be asked for; all others are the service's own."""
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass
class Endpoint:
    """One reward service: by a file in which it writes its address, or by its address."""

    file: Path | None = None
    url: str | None = None
    token: str | None = None
    told: Callable[[str], None] = field(default=lambda _: None)
    """Hears why the service is waited for, at every try."""

    def address(self) -> str | None:
        """Return where it answers now; None while its file is not there."""
        if self.file is None:
            return self.url
        try:
            return str(json.loads(self.file.read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def headers(self) -> dict[str, str]:
        """Return what authenticates the job."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


async def score(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    reward: dict[str, Any],
    items: Sequence[dict[str, Any]],
    options: dict[str, Any],
) -> list[Verdict]:
    """Return one verdict an item, in order. Raises TrainingFailure where the service refuses the reward itself (422)."""
    body = {"reward": reward, "items": items, "options": options}
    content = await asyncio.to_thread(_encoded, body) if len(items) > 256 else _encoded(body)
    # without an Idempotency-Key: a call that is given up ends the judges' work, and what they had said is in their cache
    headers = {"Content-Type": "application/json", **endpoint.headers()}
    timeout = httpx2.Timeout(float(options["timeout_s"]) + ANSWER_SECONDS, connect=5.0)
    answer = await _asked(client, endpoint, "POST", "/v1/score", content, headers, timeout)
    if isinstance(answer, str):
        return [Verdict(None, error=answer)] * len(items)
    try:
        found = ScoreResponse.model_validate_json(answer)
    except ValidationError:
        return [Verdict(None, error="answer_unreadable")] * len(items)
    by_id = {result.id: result for result in found.results}
    verdicts = []
    for item in items:
        result = by_id.get(str(item["id"]))
        if result is None:
            verdicts.append(Verdict(None, error="answer_incomplete"))
        else:
            error = None if result.error is None else str(result.error.code)
            given = result.reward if result.status == "ok" else None
            missing = error or (None if given is not None else "no_verdict")
            verdicts.append(Verdict(given, result.components, missing))
    return verdicts


async def put_provider(
    client: httpx2.AsyncClient, endpoint: Endpoint, job: str, api_base: str, key: str | None
) -> str | None:
    """Tell the central service which judge the job brings; return why that could not be done."""
    document = {"api_base": api_base} | ({} if key is None else {"api_key": key})
    headers = {"Content-Type": "application/json", **endpoint.headers()}
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=5.0)
    answer = await _asked(
        client, endpoint, "PUT", f"/v1/jobs/{job}/provider", _encoded(document), headers, timeout
    )
    return answer if isinstance(answer, str) else None


async def _asked(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    timeout: httpx2.Timeout,
) -> bytes | str:
    """Return the body of a good answer, or the code of what stood in its way once AWAY_SECONDS are over."""
    deadline = time.monotonic() + AWAY_SECONDS
    pause = FIRST_PAUSE
    while True:
        outcome = await _once(client, endpoint, method, path, content, headers, timeout)
        if isinstance(outcome, bytes):
            return outcome
        code, again = outcome
        if not again or time.monotonic() + pause > deadline:
            return code
        endpoint.told(code)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, LONGEST_PAUSE)


async def _once(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    timeout: httpx2.Timeout,
) -> bytes | tuple[str, bool]:
    """Ask once; a tuple is the code of a failure and whether asking again may help."""
    url = endpoint.address()
    if url is None:
        return AWAY, True
    try:
        answer = await client.request(
            method, f"{url}{path}", content=content, headers=headers, timeout=timeout
        )
    except httpx2.TimeoutException as error:
        # a service that took the request and did not answer in time would not be any faster the second time
        return ("no_answer", False) if isinstance(error, httpx2.ReadTimeout) else (AWAY, True)
    except httpx2.HTTPError:
        return AWAY, True
    if answer.status_code == 422:
        raise _refused(answer)
    if answer.status_code in (200, 204):
        return bytes(answer.content)
    return str(_problem(answer).get("code") or f"http_{answer.status_code}"), (
        answer.status_code in _AGAIN
    )


def _problem(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refused(answer: httpx2.Response) -> TrainingFailure:
    """Return the failure for a reward that no retry can make valid; the service's own words say what is wrong with it."""
    problem = _problem(answer)
    errors = problem.get("errors")
    said = errors[0].get("message") if isinstance(errors, list) and errors else None
    text = str(said or problem.get("detail") or answer.text[:300])
    return TrainingFailure(
        Reason.CONFIG_INVALID,
        f"The reward service refuses the reward of this job: {text}",
        f"奖励服务拒绝了该任务的奖励设置：{text}",
    )


def _encoded(body: dict[str, Any]) -> bytes:
    # text that is no Unicode (half a surrogate, as a byte-level tokenizer may leave it) becomes its replacement character
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
