"""The reference that PPO's policy is tied to: a model of its own, or the policy with its adapter off or as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from services.gpu_agent.trainers import loading
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.ppo_model import logprobs
from services.gpu_agent.trainers.session import Session
from services.gpu_agent.trainers.settings import PpoSettings
from shared.jobs.reasons import Reason


class Reference:
    """Gives log-probabilities of the reference; nothing of it is trained."""

    def __init__(self, policy: Any, model: Any | None, adapter: dict[str, Tensor] | None) -> None:
        """`model`: a frozen model; without one, the policy with `adapter` for its own, or with none where that is None."""
        self._policy = policy
        self._model = model
        self._adapter = adapter

    def to(self, device: torch.device) -> None:
        """Move what the reference holds."""
        if self._model is not None:
            self._model.to(device)
        if self._adapter is not None:
            self._adapter = {name: value.to(device) for name, value in self._adapter.items()}

    def logprobs(
        self, input_ids: Tensor, attention_mask: Tensor, completion: int, temperature: float
    ) -> Tensor:
        """Return the reference's log-probabilities `[B, completion]` of a batch laid out as for the policy."""
        with torch.no_grad():
            if self._model is not None:
                return logprobs(self._model, input_ids, attention_mask, completion, temperature)
            with self._as_it_was():
                return logprobs(self._policy, input_ids, attention_mask, completion, temperature)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        if self._adapter is None:
            with self._policy.disable_adapter():
                yield
            return
        trained = dict(self._policy.named_parameters())
        now = {name: trained[name].data for name in self._adapter}
        try:
            for name, value in self._adapter.items():
                trained[name].data = value
            yield
        finally:
            for name, value in now.items():
                trained[name].data = value


def make_reference(session: Session[PpoSettings], policy: Any) -> Reference | None:
    """Return the reference of a run, or None where nothing is tied to it (`kl_coef` 0).

    It is `ref_model_path`, else the model as it was at the start: a copy, or under LoRA the policy without its adapter,
    whose base is that model; a continued adapter is kept as it was. To be called before a checkpoint is loaded into
    `policy`. Raises TrainingFailure where the reference has another vocabulary.
    """
    if session.settings.kl_coef == 0:
        return None
    path = session.spec.model_paths.get("ref_model_path")
    if path is not None:
        model = loading.reference(path, session.numbers)
        _require_same_vocabulary(path, model, policy)
        return Reference(policy, _frozen(model), None)
    if session.loaded.kind == "full":
        return Reference(policy, _frozen(copy.deepcopy(policy)), None)
    if session.loaded.lora is not None:
        return Reference(policy, None, None)
    started = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    return Reference(policy, None, started)


def _frozen(model: Any) -> Any:
    model.requires_grad_(False)
    return model.eval()


def _require_same_vocabulary(path: str, model: Any, policy: Any) -> None:
    theirs, ours = (m.config.get_text_config().vocab_size for m in (model, policy))
    if theirs != ours:
        raise TrainingFailure(
            Reason.MODEL_INVALID,
            f"ref_model_path {path} has a vocabulary of {theirs} tokens, the trained model one of {ours}; they must be the same.",
            f"ref_model_path {path} 的词表大小为 {theirs}，训练模型为 {ours}；两者必须一致。",
        )
