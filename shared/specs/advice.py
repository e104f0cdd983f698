"""Advice: settings that are allowed and yet rarely what one wants, as warnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shared.jobs.reasons import Lang
from shared.specs.dpo import DpoSpec
from shared.specs.job_spec import JobSpec
from shared.specs.parameters import number_text
from shared.specs.ppo import PpoSpec
from shared.specs.rewards import DASHSCOPE
from shared.specs.rollout import RolloutSpec


@dataclass(frozen=True, slots=True)
class Advice:
    """A warning about one parameter; the job runs all the same."""

    code: str
    field: str
    message_en: str
    message_zh: str

    def message(self, lang: Lang) -> str:
        """Return the sentence in one language."""
        return self.message_zh if lang == "zh" else self.message_en


def advise(spec: JobSpec) -> list[Advice]:
    """Return what an experienced colleague would remark about a spec."""
    return [*_lora(spec), *_dpo(spec), *_rollout(spec), *_ppo(spec), *_machines(spec)]


def _lora(spec: JobSpec) -> Iterator[Advice]:
    if not spec.lora_enabled:
        return
    if not 4 <= spec.lora_rank <= 32:
        yield Advice(
            "lora_rank",
            "lora_rank",
            f"lora_rank is {spec.lora_rank}; 4-8 suits small tasks and 16-32 large ones.",
            f"lora_rank 为 {spec.lora_rank}；小任务宜取 4-8，大任务宜取 16-32。",
        )
    if spec.lora_alpha != 2 * spec.lora_rank:
        yield Advice(
            "lora_alpha",
            "lora_alpha",
            f"lora_alpha is {spec.lora_alpha}; twice the rank ({2 * spec.lora_rank}) is the usual choice.",
            f"lora_alpha 为 {spec.lora_alpha}；通常取秩的两倍（{2 * spec.lora_rank}）。",
        )


def _dpo(spec: JobSpec) -> Iterator[Advice]:
    if isinstance(spec, DpoSpec):
        yield from _outside("beta", spec.beta, 0.1, 0.5)


def _rollout(spec: JobSpec) -> Iterator[Advice]:
    if not isinstance(spec, RolloutSpec):
        return
    if (
        spec.max_completion_length >= spec.context_length
        and "max_completion_length" in spec.model_fields_set
    ):
        yield Advice(
            "completion_capped",
            "max_completion_length",
            f"max_completion_length is {spec.max_completion_length}, but prompt and completion share context_length {spec.context_length}; completions end earlier.",
            f"max_completion_length 为 {spec.max_completion_length}，但提示与回答共用 context_length {spec.context_length}，回答会更早结束。",
        )
    if (
        spec.reward_model_type == "api"
        and spec.reward_model_api_key is None
        and spec.reward_model_api_base == DASHSCOPE
    ):
        yield Advice(
            "reward_key_missing",
            "reward_model_api_key",
            "DashScope answers only with a key; set reward_model_api_key, or name a configured reward_provider.",
            "DashScope 必须提供密钥；请设置 reward_model_api_key，或使用已配置的 reward_provider。",
        )


def _ppo(spec: JobSpec) -> Iterator[Advice]:
    if not isinstance(spec, PpoSpec):
        return
    yield from _outside("kl_coef", spec.kl_coef, 0.001, 0.01)
    yield from _outside("clip_ratio", spec.clip_ratio, 0.1, 0.3)
    yield from _outside("rollout_n", spec.rollout_n, 4, 8)
    yield Advice(
        "ppo_memory",
        "algorithm",
        "PPO needs about twice the memory of SFT; LoRA, a smaller batch_size or a shorter context_length lower it.",
        "PPO 的显存约为 SFT 的两倍；可用 LoRA、减小 batch_size 或缩短 context_length 来降低。",
    )


def _machines(spec: JobSpec) -> Iterator[Advice]:
    if spec.distribution == "fsdp" and spec.num_gpus * spec.num_nodes == 1:
        yield Advice(
            "fsdp_alone",
            "distribution",
            "fsdp splits a model over several GPUs, and this job asks for one; set num_gpus to 2 or more, or remove it.",
            "fsdp 用于把模型切分到多块 GPU，而该任务只申请一块；请将 num_gpus 设为 2 或更多，或删除 distribution。",
        )


def _outside(field: str, value: float, low: float, high: float) -> Iterator[Advice]:
    if not low <= value <= high:
        interval = f"{number_text(low)}-{number_text(high)}"
        yield Advice(
            f"{field}_unusual",
            field,
            f"{field} is {number_text(value)}; {interval} is the usual range.",
            f"{field} 为 {number_text(value)}；通常取 {interval}。",
        )
