"""What the run needs of this machine: its GPUs there and free, enough memory, the trainer's packages."""

from __future__ import annotations

import importlib.util

from services.gpu_agent import verl_home
from services.gpu_agent.hooks.context import HookContext, Refusal
from services.gpu_agent.processes import holder_of
from shared.jobs.reasons import Reason
from shared.preflight.batch import BatchPlan, arrange
from shared.preflight.memory import RunShape, check_memory, estimate_memory

_NEEDED = ("torch", "transformers", "trl", "peft", "datasets")


def check(context: HookContext) -> Refusal | None:
    """See the module."""
    return _packages() or _verl(context) or _locks(context) or _memory(context)


def _packages() -> Refusal | None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    names = ", ".join(missing)
    return Refusal(
        "host",
        Reason.HOST_REFUSED,
        f"The host lacks {names}. Run `pip install 'trainyard[agent]'` there.",
        f"主机缺少 {names}。请在主机上运行 `pip install 'trainyard[agent]'`。",
    )


def _verl(context: HookContext) -> Refusal | None:
    if context.config.get("engine") != "verl":
        return None
    if context.device != "cuda":
        return Refusal(
            "host",
            Reason.HOST_REFUSED,
            "engine verl needs a GPU, and this host has none. Set engine to trl, or name a host with GPUs.",
            "verl 引擎需要 GPU，该主机没有 GPU。请将 engine 设为 trl，或指定有 GPU 的主机。",
        )
    if not verl_home.is_installed():
        return Refusal(
            "host",
            Reason.HOST_REFUSED,
            f"{verl_home.python()} on the host does not find verl. Run `pip install 'verl[vllm]==0.7.0'` in an environment of its own, name its interpreter in {verl_home.VARIABLE}, and start the agent again; or set engine to trl.",
            f"主机上的 {verl_home.python()} 找不到 verl。请在单独的环境中运行 `pip install 'verl[vllm]==0.7.0'`，用 {verl_home.VARIABLE} 指定其解释器并重启 agent；或将 engine 设为 trl。",
        )
    return None


def _locks(context: HookContext) -> Refusal | None:
    for uuid in context.entry.gpu_uuids:
        holder = holder_of(context.host.gpu_lock(uuid))
        if holder is not None and holder != context.entry.job:
            return Refusal(
                "host",
                Reason.HOST_REFUSED,
                f"{uuid} is still held by job {holder}.",
                f"{uuid} 仍被任务 {holder} 占用。",
            )
    return None


def _memory(context: HookContext) -> Refusal | None:
    """A note, not a refusal: the estimate is rough, and the trainer reports what really happens."""
    config, report = context.config, context.model
    if report is None:
        return None
    algorithm, batch_size = str(config.get("algorithm", "sft")), int(config.get("batch_size") or 1)
    plan = arrange(
        algorithm,
        batch_size,
        int(config.get("gradient_accumulation_steps") or 1),
        rollout_n=int(config.get("rollout_n") or 1),
        world_size=max(1, len(context.entry.gpus)),
    )
    rows = plan.per_device if isinstance(plan, BatchPlan) else batch_size
    shape = RunShape(
        algorithm=algorithm,
        batch=max(1, rows >> context.entry.oom_halvings),
        context_length=int(config.get("context_length") or 512),
        lora_rank=int(config.get("lora_rank") or 8) if config.get("lora_enabled") else None,
        optim=str(config.get("optim") or "adamw_torch"),
        gradient_checkpointing=bool(config.get("gradient_checkpointing")),
        on_cpu=context.device == "cpu",
        compute_bytes=4 if context.device == "cpu" else 2,
    )
    estimate = estimate_memory(report, shape)
    if estimate is not None:
        finding = check_memory(estimate, context.memory_mib << 20, device="the device")
        if finding is not None:
            context.notes.append(("WARNING", finding.message_en))
    return None
