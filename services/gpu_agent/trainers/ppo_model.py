"""A language model with a value head on its last hidden state, and how the two lie in one checkpoint folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.ppo_losses import token_logprobs
from shared.jobs.reasons import Reason

VALUE_FILE: Final = "v_head.safetensors"
"""Beside the policy's own files, so that the folder still loads as a plain model or adapter."""
_HEAD: Final = "v_head."
_POLICY: Final = "policy."


class PolicyWithValue(nn.Module):
    """`policy` is the language model (or its adapter), `v_head` one linear layer, zero at the start: V = 0 everywhere."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.v_head = nn.Linear(hidden_size(policy), 1)
        nn.init.zeros_(self.v_head.weight)
        nn.init.zeros_(self.v_head.bias)

    @property
    def config(self) -> Any:
        """Configuration of the policy."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """How the policy generates."""
        return self.policy.generation_config

    @property
    def device(self) -> torch.device:
        """Where the policy lies."""
        return torch.device(self.policy.device)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Generate with the policy."""
        return self.policy.generate(*args, **options)

    @property
    def _keys_to_ignore_on_save(self) -> Any:
        """Weights that the policy's own files leave out (the trainer asks after loading them)."""
        return self.policy._keys_to_ignore_on_save

    def tie_weights(self) -> None:
        """Tie the policy's input and output embeddings again, where they are."""
        self.policy.tie_weights()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return bool(self.policy.is_activation_checkpointing)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass."""
        self.policy.activation_checkpointing_enable(**options)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, completion: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities, entropies and values, each float32 `[B, completion]`.

        `input_ids` and `attention_mask` `[B, prompt + completion]`, prompts padded on the left, completions on the
        right. A value belongs to the state before its token is chosen: the hidden state that predicts the token.
        """
        logits, hidden = _last(self.policy, input_ids, attention_mask, completion, states=True)
        logp, entropy = token_logprobs(logits, input_ids[:, -completion:], temperature)
        with torch.autocast(hidden.device.type, enabled=False):  # one small layer, kept exact
            values = self.v_head(hidden.to(self.v_head.weight.dtype)).squeeze(-1)
        return logp, entropy, values.float()

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write policy and value head into `folder`. `state`: the whole model's weights, where they were gathered (FSDP)."""
        gathered = None
        head = {name: value.detach() for name, value in self.v_head.state_dict().items()}
        if state is not None:
            gathered = {
                k.removeprefix(_POLICY): v for k, v in state.items() if k.startswith(_POLICY)
            }
            head = {k.removeprefix(_HEAD): v for k, v in state.items() if k.startswith(_HEAD)}
        self.policy.save_pretrained(folder, state_dict=gathered)
        save_file({k: v.contiguous().cpu() for k, v in head.items()}, folder / VALUE_FILE)

    def load_head(self, folder: Path) -> None:
        """Read the value head back. Raises TrainingFailure where the checkpoint holds none that fits."""
        try:
            self.v_head.load_state_dict(load_file(folder / VALUE_FILE))
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingFailure(
                Reason.CHECKPOINT_CORRUPT,
                f"{folder.name} cannot be resumed from: its value head ({VALUE_FILE}) cannot be read ({error}).",
                f"无法从 {folder.name} 恢复：其价值头（{VALUE_FILE}）无法读取（{error}）。",
            ) from error


def logprobs(
    model: Any, input_ids: Tensor, attention_mask: Tensor, completion: int, temperature: float
) -> Tensor:
    """Return the log-probabilities `[B, completion]` that a plain language model gives a batch, as `PolicyWithValue` does."""
    logits, _ = _last(model, input_ids, attention_mask, completion, states=False)
    return token_logprobs(logits, input_ids[:, -completion:], temperature)[0]


def hidden_size(model: Any) -> int:
    """Return the width of the last hidden state."""
    return int(model.config.get_text_config().hidden_size)


def _last(
    model: Any, input_ids: Tensor, attention_mask: Tensor, completion: int, *, states: bool
) -> tuple[Tensor, Tensor]:
    """Return what predicts the last `completion` tokens: logits `[B, completion, V]`, hidden states `[B, completion, H]`.

    Only their logits are computed. Positions count from the first token that is no padding, as generation counts them.
    """
    accepted = _accepted(model)
    options: dict[str, Any] = {}
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = completion + 1
    if "position_ids" in accepted:
        options["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        output_hidden_states=states,
        **options,
    )
    span = slice(-completion - 1, -1)
    hidden = output.hidden_states[-1][:, span] if states else output.logits
    return output.logits[:, span], hidden


def _accepted(model: Any) -> frozenset[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)
