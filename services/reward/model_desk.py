"""The port `RewardModels`: local processes and remote endpoints."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.reward.core.provider_errors import Refusal
from services.reward.core.texts import Sample
from services.reward.core.transform import transformed
from services.reward.core.verdict import Verdict, failed, scored
from services.reward.directory import Directory
from services.reward.local_model import LocalModel, ModelUnavailable
from services.reward.model_endpoint import ModelEndpoint
from services.reward.ports import Context
from shared.rewards.scores import ErrorCode
from shared.rewards.specs import RewardModel

LOADED_AT_MOST: Final = 2
"""Local models; the one that was asked longest ago makes room."""


class ModelDesk:
    """`roots`: folders that models may lie in; None: any. `directory`: endpoints by name; None beside a trainer."""

    def __init__(
        self, directory: Directory | None, roots: tuple[Path, ...] | None, device: str = "cpu"
    ) -> None:
        """`device`: where local models run."""
        self._directory = directory
        self._roots = roots
        self._device = device
        self._local: OrderedDict[Path, LocalModel] = OrderedDict()
        self._remote: dict[str, tuple[object, ModelEndpoint]] = {}

    async def scores(
        self, spec: RewardModel, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        """Return one verdict for each sample; a model that cannot score is a verdict without a reward."""
        if spec.backend == "http":
            return await self._over_http(spec, samples, context)
        folder = _resolved(spec.model_path or "")
        if self._roots is not None and not any(folder.is_relative_to(root) for root in self._roots):
            return _lost(samples, f"{folder} lies outside of TRAINYARD_DATA_ROOTS")
        model = await self._model(folder)
        try:
            found = await model.scores([(s.prompt, s.completion) for s in samples], spec.max_length)
        except ModelUnavailable as error:
            return _lost(samples, str(error))
        return [_verdict(spec, score) for score in found]

    async def close(self) -> None:
        """End every process and connection."""
        for model in self._local.values():
            await model.close()
        for _, endpoint in self._remote.values():
            await endpoint.close()

    async def _model(self, folder: Path) -> LocalModel:
        model = self._local.get(folder)
        if model is None:
            model = self._local[folder] = LocalModel(folder, self._device)
            while len(self._local) > LOADED_AT_MOST:
                _, oldest = self._local.popitem(last=False)
                await oldest.close()
        self._local.move_to_end(folder)
        return model

    async def _over_http(
        self, spec: RewardModel, samples: Sequence[Sample], context: Context
    ) -> list[Verdict]:
        directory = self._directory
        configured = None if directory is None else directory.configured(spec.provider or "")
        if directory is None or configured is None:
            problem = f"no provider {spec.provider} is configured"
            if directory is None:
                problem += " beside a trainer; send it to the central reward service"
            return [failed(ErrorCode.PROVIDER_UNKNOWN, problem) for _ in samples]
        name = configured.provider.name
        known = self._remote.get(name)
        if known is None or known[0] is not configured:
            if known is not None:
                await known[1].close()
            endpoint = ModelEndpoint(configured, directory.allowed_hosts)
            known = self._remote[name] = (configured, endpoint)
        outcome = await known[1].scores(spec, samples, context.deadline)
        if isinstance(outcome, Refusal):
            return [failed(outcome.code, outcome.message) for _ in samples]
        return [_verdict(spec, score) for score in outcome]


def _resolved(path: str) -> Path:
    """Return the folder with links and `..` resolved: what lies outside of the roots must not look as if it did not."""
    return Path(path).expanduser().resolve()


def _verdict(spec: RewardModel, score: float | str) -> Verdict:
    if isinstance(score, str):
        return failed(ErrorCode.REWARD_MODEL_UNAVAILABLE, score)
    reward = transformed(spec, score) if math.isfinite(score) else math.nan
    if not math.isfinite(reward):
        return failed(ErrorCode.REWARD_MODEL_UNAVAILABLE, "the model's score is not finite")
    return scored(reward, "reward_model")


def _lost(samples: Sequence[Sample], problem: str) -> list[Verdict]:
    return [failed(ErrorCode.REWARD_MODEL_UNAVAILABLE, problem) for _ in samples]
