"""Rules between parameters: what must stand together, and what cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pydantic.fields import FieldInfo

from shared.specs.base import BaseSpec
from shared.specs.dpo import DpoSpec
from shared.specs.job_spec import JobSpec
from shared.specs.metrics import stop_metrics
from shared.specs.model_path import StageModel, parse_model_path
from shared.specs.parameters import number_text
from shared.specs.ppo import PpoSpec

Given = frozenset[str]


@dataclass(frozen=True, slots=True)
class Clash:
    """Parameters that do not go together; the first of `fields` is the one to change."""

    fields: tuple[str, ...]
    code: str
    en: str
    zh: str
    allowed: str | list[str] | None = None


Rule = Callable[[JobSpec, Given], Iterator[Clash]]

_LORA: Final = tuple(
    f for f in BaseSpec.model_fields if f.startswith("lora_") and f != "lora_enabled"
)
_SSH: Final = tuple(f for f in BaseSpec.model_fields if f.startswith("ssh_"))


def idle(spec: object, given: Given, switch: str, fields: tuple[str, ...]) -> list[str]:
    """Return the given fields that have no effect because their switch is off.

    A default value beside a switch that was set by hand is no mistake: forms and clones send every field.
    """
    known: dict[str, FieldInfo] = getattr(type(spec), "model_fields", {})
    return [
        f
        for f in fields
        if f in given
        and (
            switch not in given
            or getattr(spec, f) != known[f].get_default(call_default_factory=True)
        )
    ]


def lora(spec: JobSpec, given: Given) -> Iterator[Clash]:
    """LoRA parameters need LoRA; merging a LoRA checkpoint into its base does not."""
    if spec.lora_enabled:
        return
    merging = spec.lora_from_checkpoint == "merge"
    for field in idle(spec, given, "lora_enabled", _LORA):
        if not (field == "lora_from_checkpoint" and merging):
            yield Clash(
                (field, "lora_enabled"),
                "needs",
                f"{field} has no effect while lora_enabled is false. "
                f"Set lora_enabled to true for LoRA, or remove {field} for full fine-tuning.",
                f"lora_enabled 为 false 时 {field} 不起作用。"
                f"要用 LoRA 请将 lora_enabled 设为 true；全参微调请删除 {field}。",
            )


def ssh(spec: JobSpec, given: Given) -> Iterator[Clash]:
    """An SSH run needs a host and one way to log in."""
    if spec.run_mode == "ssh":
        if spec.ssh_host is None and spec.host is None:
            yield Clash(
                ("ssh_host", "run_mode", "host"),
                "needs",
                "run_mode is ssh and no host is named. Set ssh_host (with ssh_username), or host for one that has joined.",
                "run_mode 为 ssh 但未指定主机。请填写 ssh_host（及 ssh_username），或用 host 指定已加入的主机。",
            )
    else:
        for field in idle(spec, given, "run_mode", _SSH):
            yield Clash(
                (field, "run_mode"),
                "needs",
                f"{field} has no effect while run_mode is local. Set run_mode to ssh, or remove {field}.",
                f"run_mode 为 local 时 {field} 不起作用。请将 run_mode 设为 ssh，或删除 {field}。",
            )
    if spec.ssh_host is not None and spec.host is not None:
        yield Clash(
            ("ssh_host", "host"),
            "conflict",
            "host and ssh_host both name a host. Keep host for one that has joined, ssh_host for a new one.",
            "host 与 ssh_host 同时指定了主机。已加入的主机用 host，新主机用 ssh_host，只保留一个。",
        )
    if spec.ssh_password is not None and spec.ssh_private_key is not None:
        yield Clash(
            ("ssh_password", "ssh_private_key"),
            "conflict",
            "ssh_password and ssh_private_key are both given. Keep one of them.",
            "同时提供了 ssh_password 和 ssh_private_key，请只保留一个。",
        )


def stopping(spec: JobSpec, _given: Given) -> Iterator[Clash]:
    """A goal has a metric and a value, and the metric exists."""
    if spec.stop_metric is not None and spec.stop_value is None:
        yield Clash(
            ("stop_value", "stop_metric"),
            "needs",
            f"stop_metric is {spec.stop_metric} without a goal. Set stop_value too, or remove stop_metric.",
            f"设置了 stop_metric={spec.stop_metric} 但没有目标值。请同时设置 stop_value，或删除 stop_metric。",
        )
    if spec.stop_metric is None:
        if spec.stop_value is not None:
            yield Clash(
                ("stop_metric", "stop_value"),
                "needs",
                f"stop_value is {number_text(spec.stop_value)} without a metric. Set stop_metric too, or remove stop_value.",
                f"设置了 stop_value={number_text(spec.stop_value)} 但没有指标。请同时设置 stop_metric，或删除 stop_value。",
            )
        return
    known = stop_metrics(spec.algorithm)
    if spec.stop_metric not in known:
        yield Clash(
            ("stop_metric",),
            "not_allowed",
            f'stop_metric is "{spec.stop_metric}", which {spec.algorithm} does not measure. Choose one of {", ".join(known)}.',
            f"stop_metric 为“{spec.stop_metric}”，{spec.algorithm} 没有该指标。请选择：{'、'.join(known)}。",
            known,
        )
    elif (
        spec.stop_metric == "eval_accuracy"
        and not spec.eval_generate
        and spec.algorithm not in ("dpo", "reward_model")
    ):
        yield Clash(
            ("eval_generate", "stop_metric"),
            "needs",
            "stop_metric is eval_accuracy, which comes from generated answers. Set eval_generate to true.",
            "stop_metric 为 eval_accuracy，它来自生成的回答。请将 eval_generate 设为 true。",
        )


def evaluating(spec: JobSpec, _given: Given) -> Iterator[Clash]:
    """Whatever evaluates needs evaluation data."""
    users = {
        "eval_generate": spec.eval_generate,
        "early_stopping_patience": spec.early_stopping_patience is not None,
        "stop_metric": (spec.stop_metric or "").startswith("eval_"),
    }
    for field, used in users.items():
        if used and spec.eval_data_path is None:
            yield Clash(
                ("eval_data_path", field),
                "needs",
                f"{field} needs evaluation data. Set eval_data_path, or remove {field}.",
                f"{field} 需要评估数据。请设置 eval_data_path，或删除 {field}。",
            )
    if spec.eval_generate and spec.algorithm == "reward_model":
        yield Clash(
            ("eval_generate",),
            "conflict",
            "eval_generate is true, but a reward model writes no text. Remove eval_generate; accuracy is measured anyway.",
            "eval_generate 为 true，但奖励模型不生成文本。请删除 eval_generate；准确率本来就会评估。",
        )


def machines(spec: JobSpec, _given: Given) -> Iterator[Clash]:
    """Several nodes need a way to share the work; verl runs only what it can."""
    if spec.num_nodes > 1 and spec.distribution is None:
        yield Clash(
            ("distribution", "num_nodes"),
            "needs",
            f"num_nodes is {spec.num_nodes} and distribution is not set. Set it to ddp (model fits on one GPU) or fsdp (it does not).",
            f"num_nodes 为 {spec.num_nodes}，但未设置 distribution。单卡放得下模型用 ddp，否则用 fsdp。",
            ["ddp", "fsdp"],
        )
    split = spec.distribution == "fsdp" and spec.num_gpus > 1
    if split and spec.algorithm == "ppo" and spec.engine == "trl":
        yield Clash(
            ("distribution", "algorithm"),
            "not_allowed",
            "ppo trains on several GPUs with distribution ddp only; fsdp would split policy and value head. Set ddp, or engine verl.",
            "ppo 在多块 GPU 上只支持 distribution 为 ddp；fsdp 会拆分策略与价值头。请改为 ddp，或将 engine 设为 verl。",
            ["ddp"],
        )
    if isinstance(spec, PpoSpec) and spec.engine == "trl" and spec.batch_size % spec.num_gpus:
        yield Clash(
            ("batch_size", "num_gpus"),
            "not_allowed",
            f"The {spec.batch_size} prompts of a step (batch_size) cannot be shared by {spec.num_gpus} GPUs. Set batch_size to a multiple of {spec.num_gpus}.",
            f"每一步的 {spec.batch_size} 个提示（batch_size）无法平均分给 {spec.num_gpus} 块 GPU。请将 batch_size 设为 {spec.num_gpus} 的倍数。",
        )
    if spec.engine == "verl" and spec.algorithm not in ("ppo", "grpo"):
        yield Clash(
            ("engine", "algorithm"),
            "not_allowed",
            f"engine verl runs ppo and grpo, not {spec.algorithm}. Set engine to trl.",
            f"verl 引擎只支持 ppo 和 grpo，不支持 {spec.algorithm}。请将 engine 设为 trl。",
            ["trl"],
        )


def strength(spec: JobSpec, given: Given) -> Iterator[Clash]:
    """`beta` and `kl_coef` of DPO are one parameter."""
    if isinstance(spec, DpoSpec) and "beta" in given and spec.kl_coef not in (None, spec.beta):
        yield Clash(
            ("kl_coef", "beta"),
            "conflict",
            f"beta is {number_text(spec.beta)} and kl_coef is {number_text(spec.kl_coef or 0)}, but they are one parameter. Remove kl_coef.",
            f"beta 为 {number_text(spec.beta)}，kl_coef 为 {number_text(spec.kl_coef or 0)}，但二者是同一个参数。请删除 kl_coef。",
        )


def minibatches(spec: JobSpec, _given: Given) -> Iterator[Clash]:
    """A minibatch holds at least one completion."""
    if isinstance(spec, PpoSpec) and spec.ppo_minibatches > spec.batch_size * spec.rollout_n:
        most = spec.batch_size * spec.rollout_n
        yield Clash(
            ("ppo_minibatches", "batch_size", "rollout_n"),
            "out_of_range",
            f"ppo_minibatches is {spec.ppo_minibatches}, but batch_size x rollout_n gives only {most} completions. Set it to {most} or less.",
            f"ppo_minibatches 为 {spec.ppo_minibatches}，但 batch_size × rollout_n 只有 {most} 个回答。请设为不超过 {most}。",
            f"1 <= x <= {most}",
        )


def stages(spec: JobSpec, _given: Given) -> Iterator[Clash]:
    """`stage:` names something only inside a pipeline."""
    for field in ("model_path", "ref_model_path", "reward_model_path"):
        text = getattr(spec, field, None)
        if isinstance(text, str) and isinstance(parse_model_path(text), StageModel):
            yield Clash(
                (field,),
                "needs",
                f"{field} names a stage, and this job is in no pipeline. Use job:<uuid>, or submit a pipeline.",
                f"{field} 指向流水线阶段，但该任务不在流水线中。请改用 job:<uuid>，或提交流水线。",
            )


RULES: Final[tuple[Rule, ...]] = (
    lora,
    ssh,
    stopping,
    evaluating,
    machines,
    strength,
    minibatches,
)
