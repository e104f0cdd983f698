"""Reward models behind HTTP: vLLM and SGLang `/classify`, `/pooling`, embeddings, and OpenRLHF's `/get_reward`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import httpx2

from services.reward.core import retry
from services.reward.core.provider_errors import Refusal, garbage, refusal, timed_out, unreachable
from services.reward.core.texts import Sample
from services.reward.directory import Configured
from services.reward.transport import CheckedTransport
from shared.rewards.specs import RewardModel

Json = Mapping[str, Any]


class ModelEndpoint:
    """One configured endpoint. A failure is a Refusal, never an exception."""

    def __init__(self, configured: Configured, allowed_hosts: frozenset[str]) -> None:
        self._provider = configured.provider
        headers = {"Authorization": f"Bearer {configured.key}"} if configured.key else {}
        self._http = httpx2.AsyncClient(
            transport=CheckedTransport(allowed_hosts, configured.provider.concurrency),
            headers=headers, timeout=configured.provider.timeout_s, trust_env=False, follow_redirects=False,
        )  # fmt: skip

    async def scores(
        self, spec: RewardModel, samples: Sequence[Sample], deadline: float
    ) -> list[float] | Refusal:
        """Return a raw score for each sample; tries again where that can help, within the deadline (loop's clock)."""
        loop = asyncio.get_running_loop()
        tried = 0
        while True:
            tried += 1
            outcome = await self._once(spec, samples)
            if not isinstance(outcome, Refusal):
                return outcome
            again = retry.after(outcome, tried, random.random(), deadline - loop.time())
            if again is None:
                return outcome
            await asyncio.sleep(again.seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _once(self, spec: RewardModel, samples: Sequence[Sample]) -> list[float] | Refusal:
        path, body = _ASKS[spec.route](spec, samples)
        url = self._provider.api_base.rstrip("/") + path
        try:
            answer = await self._http.post(url, json=body)
            if answer.status_code >= 400:
                return refusal(answer.status_code, None, f"HTTP {answer.status_code}")
            scores = _READS[spec.route](answer.json())
        except httpx2.TimeoutException:
            return timed_out(self._provider.timeout_s)
        except httpx2.TransportError as error:
            return unreachable(str(error)[:200], sent=True)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return garbage(f"the answer is not that of {spec.route}: {type(error).__name__}")
        if len(scores) != len(samples):
            return garbage(f"{len(scores)} scores came for {len(samples)} items")
        return scores


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [f"{s.prompt}\n{s.completion}" if s.prompt else s.completion for s in samples]


def _ask_classify(spec: RewardModel, samples: Sequence[Sample]) -> tuple[str, Json]:
    # without it vLLM squashes the logits: a model of one label would always answer 1
    return "/classify", {
        "model": spec.model_path or "", "input": _texts(samples), "use_activation": False,
    }  # fmt: skip


def _ask_pooling(spec: RewardModel, samples: Sequence[Sample]) -> tuple[str, Json]:
    return "/pooling", {
        "model": spec.model_path or "", "input": _texts(samples), "task": "classify", "use_activation": False,
    }  # fmt: skip


def _ask_embeddings(spec: RewardModel, samples: Sequence[Sample]) -> tuple[str, Json]:
    return "/v1/embeddings", {"model": spec.model_path or "", "input": _texts(samples)}


def _ask_get_reward(_: RewardModel, samples: Sequence[Sample]) -> tuple[str, Json]:
    return "/get_reward", {
        "query": [s.prompt + s.completion for s in samples],
        "prompts": [s.prompt for s in samples],
        "labels": [s.solution or "" for s in samples],
    }


def _read_pooling(answer: Json) -> list[float]:
    found = []
    for entry in answer["data"]:
        value = entry["data"]
        while isinstance(value, list):
            value = value[-1]
        found.append(float(value))
    return found


Ask = Callable[[RewardModel, Sequence[Sample]], tuple[str, Json]]
_ASKS: Final[Mapping[str, Ask]] = {
    "classify": _ask_classify,
    "pooling": _ask_pooling,
    "embeddings": _ask_embeddings,
    "get_reward": _ask_get_reward,
}
_READS: Final[Mapping[str, Callable[[Json], list[float]]]] = {
    "classify": lambda answer: [float(entry["probs"][-1]) for entry in answer["data"]],
    "pooling": _read_pooling,
    "embeddings": lambda answer: [float(entry["embedding"][-1]) for entry in answer["data"]],
    "get_reward": lambda answer: [float(score) for score in answer["rewards"]],
}
