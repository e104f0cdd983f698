"""The files of a checkpoint whose model is split over ranks (FSDP2): whole weights once, and an optimizer that goes on exactly.

Differs from what transformers 5.23 and accelerate 1.15 do by themselves in three ways: weights are not written a second
time as `pytorch_model_fsdp.bin`, for `model.safetensors` holds them; a tied weight is written once, as everywhere else;
and a checkpoint before the first step leaves the optimizer alone. (torch makes an optimizer's state, to be able to save
it, by a step with a learning rate of zero; Adam counts that step, and corrects its first moments as if it had been one.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers.trainer import SCHEDULER_NAME

from services.gpu_agent.trainers import ranks


def holds_whole_weights(trainer: Any) -> bool:
    """Tell whether this trainer's model is split and trained whole; adapters are small, and left to transformers."""
    return bool(trainer.is_fsdp_enabled) and not isinstance(trainer.model, PeftModel)


def write_state(trainer: Any, folder: Path) -> None:
    """Write optimizer and scheduler of any trainer, split or not."""
    if holds_whole_weights(trainer):
        _gather_on_first(trainer)
        if trainer.state.global_step > 0:
            save_fsdp_optimizer(
                trainer.accelerator.state.fsdp_plugin,
                trainer.accelerator,
                trainer.optimizer,
                trainer.model,
                str(folder),
            )
        if ranks.is_first():
            torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        return
    trainer._save_optimizer_and_scheduler(str(folder))
    if trainer.is_fsdp_enabled and trainer.state.global_step == 0:
        trainer.optimizer.state.clear()
        if ranks.is_first():
            for path in folder.glob("optimizer*"):
                path.unlink()


def untied(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights without those that are another one's by a second name."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: value for name, value in state.items() if name not in tied}


def load_weights(trainer: Any, folder: Path) -> None:
    """Read the weights in the first rank and give each rank its part."""
    _gather_on_first(trainer)
    state: dict[str, Any] = {}
    if ranks.is_first():
        for path in sorted(folder.glob("model*.safetensors")):
            state |= load_file(path)
        for name, source in (getattr(trainer.model, "all_tied_weights_keys", None) or {}).items():
            state[name] = state[source]
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)
    set_model_state_dict(trainer.model, state, options=options)


def _gather_on_first(trainer: Any) -> None:
    config = trainer.accelerator.state.fsdp_plugin.state_dict_config
    config.offload_to_cpu = config.rank0_only = True
