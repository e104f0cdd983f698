"""What completions are worth, asked of the reward service: batched, several at a time, and None, never zero, where it fails.

Rules and local reward models are asked of the service of this host, so that they need no network; judges of the central one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import math
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar

import httpx2

from services.gpu_agent.trainers import reward_calls
from services.gpu_agent.trainers.context import TrainContext
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.reward_calls import Endpoint
from services.gpu_agent.trainers.reward_spec import Part, RewardPlan, combine
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt, Verdict
from shared.jobs.reasons import Reason
from shared.rewards.scores import MAX_ITEMS, ErrorCode
from shared.rewards.specs import REWARD
from shared.runs import REWARD_TOKEN

T = TypeVar("T")
Priority = Literal["train", "eval"]

LOCAL_SECONDS: Final = 120.0
JUDGE_SECONDS: Final = 600.0
"""How long the service may take for one request; what is late has no verdict."""
LARGEST_BODY: Final = 8 * 1024 * 1024
"""Characters of one request; the service takes 32 MiB."""
IN_FLIGHT: Final = 4
LOOK_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 5.0
"""How long a step still waits for its verdicts once a stop was asked for."""
TELL_AFTER_SECONDS: Final = 10.0
TELL_EVERY_SECONDS: Final = 240.0
"""So often at least: below what the agent takes for a stall."""


class Scorer:
    """Scores rollouts for one attempt, from the main thread; the calls are made in a thread of its own. `close` ends it."""

    def __init__(self, context: TrainContext, plan: RewardPlan) -> None:
        """Raises TrainingFailure where a part can be asked of nobody, or the job's own judge cannot be announced."""
        self.plan = plan
        self.seconds = 0.0
        """How long the last `score` took."""
        self._context = context
        self._waits_for = ""
        spec, secrets = context.spec, context.named_secrets
        central = Endpoint(url=spec.reward_url, token=secrets.get(REWARD_TOKEN), told=self._waits)
        here = Endpoint(spec.rules_file, spec.reward_url, told=self._waits)
        if spec.rules_file is None:
            here.token = central.token
        self._central, self._here = central, here
        for part in plan.parts:
            _require(part, central if part.central else here)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        self._client = httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=32))
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        if plan.private is not None:
            problem = self._done(self._announce())
            if problem is not None:
                self.close()
                raise TrainingFailure(
                    Reason.REWARD_UNAVAILABLE,
                    f"The central reward service did not take this job's judge ({problem}).",
                    f"中央奖励服务未接受该任务自带的评判服务（{problem}）。",
                )

    def score(self, rollouts: Sequence[Rollout], priority: Priority = "train") -> list[Verdict]:
        """Return one verdict a rollout, in order; `reward` is finite or None. Raises TrainingFailure for an invalid reward.

        Once a stop is asked for it waits GRACE_SECONDS more; what is then missing has no verdict (`cancelled`).
        """
        began = time.monotonic()
        verdicts = self._done(self._scored(rollouts, priority))
        self.seconds = time.monotonic() - began
        if verdicts is None:
            return [Verdict(None, error=ErrorCode.CANCELLED.value)] * len(rollouts)
        return verdicts

    def close(self) -> None:
        """End the calls that run, and the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._ended(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # ---- in the main thread

    def _done(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Wait for `work`, and say so where it takes long; None where a stop came first."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        began, tell_after, stopped = time.monotonic(), TELL_AFTER_SECONDS, 0.0
        while True:
            try:
                return future.result(LOOK_SECONDS)
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise  # a TimeoutError of the work itself
            now = time.monotonic()
            if now - began >= tell_after:
                why = f" ({self._waits_for})" if self._waits_for else ""
                self._context.warning(
                    f"Waits for the reward service for {now - began:.0f} s{why}; it is asked again until it answers."
                )
                self._context.alive()
                tell_after += min(2 * tell_after, TELL_EVERY_SECONDS)
            if self._context.should_stop():
                stopped = stopped or now
                if now - stopped >= GRACE_SECONDS:
                    future.cancel()
                    return None

    # ---- in the thread of the calls

    def _waits(self, code: str) -> None:
        self._waits_for = code

    async def _announce(self) -> str | None:
        private, job = self.plan.private, self._context.spec.job
        assert private is not None
        named = self._context.named_secrets
        key = next((named[n] for n in (private.secret, *private.others) if n in named), None)
        return await reward_calls.put_provider(
            self._client, self._central, job, private.api_base, key
        )

    async def _scored(self, rollouts: Sequence[Rollout], priority: Priority) -> list[Verdict]:
        self._waits_for = ""
        by_part = await asyncio.gather(
            *(self._part(part, rollouts, priority) for part in self.plan.parts)
        )
        return [_finite(combine(self.plan, found)) for found in zip(*by_part, strict=True)]

    async def _part(
        self, part: Part, rollouts: Sequence[Rollout], priority: Priority
    ) -> list[Verdict]:
        items = [_item(n, part, rollout) for n, rollout in enumerate(rollouts)]
        verdicts = await self._asked(part, items, priority)
        if self.plan.private is not None and part.central:
            # it is kept in memory there: after a restart it must be told again
            lost = [n for n, v in enumerate(verdicts) if v.error == ErrorCode.PROVIDER_UNKNOWN]
            if lost and await self._announce() is None:
                again = await self._asked(part, [items[n] for n in lost], priority)
                for n, verdict in zip(lost, again, strict=True):
                    verdicts[n] = verdict
        return verdicts

    async def _asked(
        self, part: Part, items: Sequence[dict[str, Any]], priority: Priority
    ) -> list[Verdict]:
        reward = REWARD.dump_python(part.reward, mode="json", exclude_unset=True)
        options: dict[str, Any] = {
            "timeout_s": JUDGE_SECONDS if part.central else LOCAL_SECONDS,
            "priority": priority,
            "job_uuid": self._context.spec.job[:64],
        }
        if part.central and self.plan.max_cost is not None:
            options["job_max_cost"] = self.plan.max_cost
        endpoint = self._central if part.central else self._here

        async def one(batch: Sequence[dict[str, Any]]) -> list[Verdict]:
            async with self._gate:
                return await reward_calls.score(self._client, endpoint, reward, batch, options)

        found = await asyncio.gather(*(one(batch) for batch in batches(items)))
        return list(itertools.chain.from_iterable(found))

    async def _ended(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()


def batches(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split items for requests of at most MAX_ITEMS and about LARGEST_BODY; a group is never divided."""
    batch: list[dict[str, Any]] = []
    size = 0
    for _, members in itertools.groupby(items, key=lambda item: item.get("group_id", item["id"])):
        group = list(members)
        length = sum(len(i["prompt"]) + len(i["completion"]) for i in group)
        if batch and (len(batch) + len(group) > MAX_ITEMS or size + length > LARGEST_BODY):
            yield batch
            batch, size = [], 0
        batch += group
        size += length
    if batch:
        yield batch


def reference(prompt: RolloutPrompt, key: str) -> str | None:
    """Return the reference answer of a row in column `key`, as text."""
    value = prompt.row.get(key)
    return prompt.solution if value is None else str(value)


def _item(number: int, part: Part, rollout: Rollout) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": str(number),
        "prompt": rollout.prompt.shown,
        "completion": rollout.completion,
        "solution": reference(rollout.prompt, part.answer_key),
        "truncated": rollout.truncated,
    }
    if rollout.group:
        item["group_id"] = rollout.group
    if rollout.score is not None and math.isfinite(rollout.score):
        item["metadata"] = {"score": rollout.score}
    return item


def _finite(verdict: Verdict) -> Verdict:
    """A reward that is not finite would spoil the whole group: it is none."""
    if verdict.reward is None or math.isfinite(verdict.reward):
        return verdict
    return replace(verdict, reward=None, error="not_finite")


def _require(part: Part, endpoint: Endpoint) -> None:
    if endpoint.file is not None or endpoint.url is not None:
        return
    where = (
        ("central reward service", "中央")
        if part.central
        else ("reward service of this host", "本机")
    )
    raise TrainingFailure(
        Reason.REWARD_UNAVAILABLE,
        f"The reward {part.name} is asked of the {where[0]}, and this run knows no address of it.",
        f"奖励 {part.name} 由{where[1]}奖励服务计算，但该运行不知道其地址。",
    )  # fmt: skip
