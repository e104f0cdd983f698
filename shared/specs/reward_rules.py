"""Rules of the reward parameters: one source of reward, complete, and nothing given that has no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shared.specs.dpo import DpoSpec
from shared.specs.job_spec import JobSpec, RolloutJob
from shared.specs.rewards import (
    RewardComponent,
    RewardParameters,
    RuleParameters,
)
from shared.specs.rollout import RolloutSpec
from shared.specs.rules import Clash, Given, idle
from shared.specs.sft import SftSpec

_API: Final = ("reward_model_api_base", "reward_model_api_key", "reward_model_api_model")
_RULE: Final = tuple(f for f in RuleParameters.model_fields if f != "reward_fn_type")
LARGEST_GROUP: Final = 16
"""So many completions of one prompt can compete (reward service, `self_play`)."""
_SOURCES: Final = "reward_fn_type, reward_provider, reward_model_type, rewards"


def rewards(spec: JobSpec, given: Given) -> Iterator[Clash]:
    """Check the reward of an algorithm that samples, and the scoring rule of one that does not."""
    if isinstance(spec, RolloutSpec):
        yield from _sources(spec, given)
        # components replace gspo's default rule, so its details would have no effect
        replaced = spec.rewards is not None and "reward_fn_type" not in given
        single = spec.model_copy(update={"reward_fn_type": None}) if replaced else spec
        yield from _details(single, given, "")
        yield from _groups(spec)
        yield from _one_judge(spec)
        for place, component in enumerate(spec.rewards or ()):
            yield from _component(component, place)
    elif isinstance(spec, (SftSpec, DpoSpec)):
        yield from _scoring(spec, given)


def _named(spec: RewardParameters | RewardComponent) -> list[str]:
    sources = {
        "reward_fn_type": spec.reward_fn_type,
        "reward_provider": spec.reward_provider,
        "reward_model_type": spec.reward_model_type,
    }
    return [field for field, value in sources.items() if value is not None]


def _sources(spec: RolloutJob, given: Given) -> Iterator[Clash]:
    named = _named(spec)
    if spec.rewards is not None:
        # gspo's own default gives way to components; parse_job_spec then clears it
        for field in named:
            if field in given:
                yield Clash(
                    (field, "rewards"),
                    "conflict",
                    f"{field} and rewards are both given. Move {field} into rewards as one more component.",
                    f"同时提供了 {field} 和 rewards。请把 {field} 作为一个分量放入 rewards。",
                )
        return
    if not named:
        yield Clash(
            ("reward_fn_type", "reward_provider", "reward_model_type", "rewards"),
            "needs",
            f"{spec.algorithm} needs a reward and none is named. Set one of {_SOURCES}; "
            'for answers that can be checked, "reward_fn_type": "math_verify".',
            f"{spec.algorithm} 需要奖励，但未指定。请设置 {_SOURCES} 之一；"
            '答案可核对时用 "reward_fn_type": "math_verify"。',
        )
    yield from _one_source(spec, named, "")


def _one_source(
    spec: RewardParameters | RewardComponent, named: list[str], prefix: str
) -> Iterator[Clash]:
    judged = [field for field in named if field != "reward_fn_type"]
    clashing = judged if len(judged) > 1 else named
    if len(clashing) > 1 and (clashing is judged or spec.reward_fn_type != "self_play"):
        fields = tuple(prefix + field for field in clashing)
        yield Clash(
            fields,
            "conflict",
            f"{' and '.join(fields)} are both given. Keep one, or combine them in rewards.",
            f"同时提供了 {' 和 '.join(fields)}。请只保留一个，或在 rewards 中组合。",
        )


def _details(
    spec: RewardParameters | RewardComponent, given: Given, prefix: str
) -> Iterator[Clash]:
    path = prefix + "reward_model_path"
    if spec.reward_model_type == "model" and spec.reward_model_path is None:
        yield Clash(
            (path, prefix + "reward_model_type"),
            "needs",
            f"{prefix}reward_model_type is model and no model is named. Set {path}, such as job:<uuid>@best.",
            f"{prefix}reward_model_type 为 model，但未指定模型。请设置 {path}，例如 job:<uuid>@best。",
        )
    if spec.reward_model_type != "model":
        yield from _needless(
            prefix,
            "reward_model_type",
            "model",
            idle(spec, given, "reward_model_type", ("reward_model_path",)),
        )
    if spec.reward_model_type != "api":
        yield from _needless(
            prefix, "reward_model_type", "api", idle(spec, given, "reward_model_type", _API)
        )
    if spec.reward_fn_type is None:
        yield from _needless(
            prefix, "reward_fn_type", "math_verify", idle(spec, given, "reward_fn_type", _RULE)
        )


def _needless(prefix: str, switch: str, value: str, fields: list[str]) -> Iterator[Clash]:
    for field in fields:
        yield Clash(
            (prefix + field, prefix + switch),
            "needs",
            f"{prefix}{field} has no effect without {switch}. Set {switch} (for example to {value}), or remove {field}.",
            f"没有 {switch} 时 {prefix}{field} 不起作用。请设置 {switch}（例如 {value}），或删除 {field}。",
        )


def _component(component: RewardComponent, place: int) -> Iterator[Clash]:
    prefix = f"rewards.{place}."
    named = _named(component)
    if not named:
        yield Clash(
            (prefix + "reward_fn_type",),
            "needs",
            f"rewards.{place} ({component.name}) names no reward. Set its reward_fn_type, reward_provider or reward_model_type.",
            f"rewards.{place}（{component.name}）未指定奖励。请设置其 reward_fn_type、reward_provider 或 reward_model_type。",
        )
    yield from _one_source(component, named, prefix)
    yield from _details(component, frozenset(component.model_fields_set), prefix)


def _one_judge(spec: RolloutJob) -> Iterator[Clash]:
    """A job brings one judge of its own: one address, one key; its components may ask several models of it."""
    own = [(n, c) for n, c in enumerate(spec.rewards or ()) if c.reward_model_type == "api"]
    keys = [None if (k := c.reward_model_api_key) is None else k.get_secret_value() for _, c in own]
    first_key = next((k for k in keys if k is not None), None)
    for (place, component), key in zip(own[1:], keys[1:], strict=True):
        for field, differs in (
            ("reward_model_api_base", component.reward_model_api_base != own[0][1].reward_model_api_base),
            ("reward_model_api_key", key not in (None, first_key)),
        ):  # fmt: skip
            if differs:
                name = f"rewards.{place}.{field}"
                yield Clash(
                    (name,),
                    "conflict",
                    f"{name} differs from that of another component, and a job brings one judge of its own. Configure the other as a provider and name it by reward_provider.",
                    f"{name} 与另一分量不同，而每个任务只能自带一个评判服务。请将另一个配置为服务商并用 reward_provider 引用。",
                )


def _groups(spec: RolloutJob) -> Iterator[Clash]:
    kinds = [spec.reward_fn_type, *(c.reward_fn_type for c in spec.rewards or ())]
    if "self_play" in kinds and spec.rollout_n < 2:
        yield Clash(
            ("rollout_n", "reward_fn_type"),
            "out_of_range",
            f"rollout_n is {spec.rollout_n}, but self_play lets the completions of a prompt compete. Set rollout_n to 2 or more.",
            f"rollout_n 为 {spec.rollout_n}，而 self_play 需要同一提示的多个回答竞争。请将 rollout_n 设为 2 或更大。",
            f"2 <= x <= {LARGEST_GROUP}",
        )
    if "self_play" in kinds and spec.rollout_n > LARGEST_GROUP:
        yield Clash(
            ("rollout_n", "reward_fn_type"),
            "out_of_range",
            f"rollout_n is {spec.rollout_n}, but at most {LARGEST_GROUP} completions of a prompt can compete in self_play. Set rollout_n to {LARGEST_GROUP} or less, or another reward.",
            f"rollout_n 为 {spec.rollout_n}，而 self_play 中同一提示最多 {LARGEST_GROUP} 个回答竞争。请将 rollout_n 设为不超过 {LARGEST_GROUP}，或更换奖励。",
            f"2 <= x <= {LARGEST_GROUP}",
        )


def _scoring(spec: SftSpec | DpoSpec, given: Given) -> Iterator[Clash]:
    if spec.reward_fn_type == "self_play":
        yield Clash(
            ("reward_fn_type",),
            "not_allowed",
            f"reward_fn_type is self_play, which needs several completions per prompt; {spec.algorithm} evaluates one. Choose math_verify, format_check or rule_based.",
            f"reward_fn_type 为 self_play，需要每个提示有多个回答，而 {spec.algorithm} 评估时只有一个。请选择 math_verify、format_check 或 rule_based。",
            ["math_verify", "format_check", "rule_based"],
        )
    elif spec.reward_fn_type is not None and not spec.eval_generate:
        yield Clash(
            ("reward_fn_type", "eval_generate"),
            "needs",
            f"reward_fn_type in {spec.algorithm} scores the answers of eval_generate, which is off. Set eval_generate to true, or remove reward_fn_type.",
            f"在 {spec.algorithm} 中 reward_fn_type 用于给 eval_generate 的回答打分，而它未开启。请将 eval_generate 设为 true，或删除 reward_fn_type。",
        )
    if spec.reward_fn_type is None:
        yield from _needless(
            "", "reward_fn_type", "math_verify", idle(spec, given, "reward_fn_type", _RULE)
        )
