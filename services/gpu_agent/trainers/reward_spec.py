"""From a job's flat parameters to the rewards that are asked for, and where: what needs a judge is asked centrally. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.rollouts import Verdict
from shared.jobs.reasons import Reason
from shared.rewards.rule_specs import MathVerify
from shared.rewards.specs import REWARD, Judge, Reward, SelfPlay, parts
from shared.specs.reward_rules import LARGEST_GROUP
from shared.specs.rewards import DASHSCOPE

PRIVATE: Final = "job"
"""Provider that the job brings itself (`reward_model_type: api`)."""
_RIGHT_FROM: Final = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """One reward, asked of one service."""

    name: str
    reward: Reward
    answer_key: str
    weight: float = 1.0
    required: bool = False

    @property
    def central(self) -> bool:
        """Whether the central service is asked: judges need its keys, limits and budget; all else stays on this host."""
        return any(isinstance(part, Judge) for part in parts(self.reward))

    @property
    def competes(self) -> bool:
        """Whether completions of one prompt are compared, so that one alone has no reward."""
        return isinstance(self.reward, SelfPlay)


@dataclass(frozen=True, slots=True)
class PrivateJudge:
    """The judge that the job brings: where it answers, and the name of its key among the attempt's secrets."""

    api_base: str
    secret: str
    others: tuple[str, ...] = ()
    """Names of the same key in other components; only one of them need have it."""


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """What a completion is worth: one part, or the weighted sum of several."""

    parts: tuple[Part, ...]
    combined: bool = False
    private: PrivateJudge | None = None
    max_cost: float | None = None

    @property
    def central(self) -> bool:
        """Whether anything is asked of the central service."""
        return any(part.central for part in self.parts)

    @property
    def needs_scores(self) -> bool:
        """Whether duels are decided by the policy itself, whose log-probabilities the trainer then supplies."""
        return any(_decided_by_policy(part.reward) for part in self.parts)

    @property
    def right_from(self) -> float:
        """The reward from which a completion counts as right: between wrong and correct for math_verify, else 0.5."""
        found = next((p.reward for p in self.parts if isinstance(p.reward, MathVerify)), None)
        return _RIGHT_FROM if found is None else (found.wrong_reward + found.correct_reward) / 2

    def measured(self, verdict: Verdict) -> float | None:
        """Return what is held against `right_from`: the compared answer where there is one, else the whole reward."""
        math = next((p.name for p in self.parts if isinstance(p.reward, MathVerify)), None)
        return verdict.reward if math is None or not self.combined else verdict.components.get(math)

    def alone(self) -> RewardPlan:
        """Return the plan for one completion a prompt, as evaluation has it: nothing in it competes.

        A plan that only competes becomes the comparison of its answers with the reference, where rows have one.
        """
        kept = tuple(part for part in self.parts if not part.competes)
        if kept or not self.parts:
            return replace(self, parts=kept)
        first = self.parts[0]
        assert isinstance(first.reward, SelfPlay)
        rule = MathVerify(
            type="math_verify",
            extract=first.reward.extract,
            compare=first.reward.compare,
            json_key=first.reward.json_key,
        )
        return RewardPlan((Part("math_verify", rule, first.answer_key),))


def reward_plan(
    config: Mapping[str, Any], model_paths: Mapping[str, str], rollout_n: int = 1
) -> RewardPlan:
    """Read the reward parameters of PRODUCT section 2. Raises TrainingFailure (`config_invalid`) naming the parameter.

    `model_paths`: reward models by the place of their parameter, resolved on this host; `rollout_n`: completions a prompt.
    """
    listed = config.get("rewards")
    if listed:
        found = tuple(
            _part(c, f"rewards.{n}.", model_paths, str(c["name"])) for n, c in enumerate(listed)
        )
        sources = [(c, f"rewards.{c['name']}.") for c in listed]
    else:
        found = (_part(config, "", model_paths, None),)
        sources = [(config, "")]
    plan = RewardPlan(found, bool(listed), _private(sources), config.get("max_reward_cost"))
    if any(p.competes for p in found) and not 2 <= rollout_n <= LARGEST_GROUP:
        raise _invalid(
            f"rollout_n is {rollout_n}; with self_play 2 to {LARGEST_GROUP} completions of a prompt compete.",
            f"rollout_n 为 {rollout_n}；self_play 要求每个提示有 2 到 {LARGEST_GROUP} 个回答。",
        )
    return plan


def rule_plan(config: Mapping[str, Any]) -> RewardPlan | None:
    """Return the rule that scores the answers of an evaluation (sft, dpo), or None where none is named."""
    return None if config.get("reward_fn_type") is None else reward_plan(config, {})


def combine(plan: RewardPlan, verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on one completion from those of the plan's parts, in order.

    The same as a `weighted_sum` of the reward service with `on_child_error: drop`: a part that failed never counts as
    zero. Where it was required there is no reward; else the parts that are there stand for all, by their weight.
    """
    if not plan.combined:
        return verdicts[0]
    pairs = list(zip(plan.parts, verdicts, strict=True))
    components: dict[str, float | None] = {}
    for part, verdict in pairs:
        components[part.name] = verdict.reward
        components |= {f"{part.name}.{name}": v for name, v in verdict.components.items()}
    lost = [(part, v) for part, v in pairs if v.reward is None]
    there = [(part.weight, v.reward) for part, v in pairs if v.reward is not None]
    weight = sum(abs(w) for w, _ in there)
    asked = sum(abs(part.weight) for part in plan.parts)
    problem = next((v.error for part, v in lost if part.required), None)
    if problem is None and (not there or (weight == 0 and asked > 0)):
        problem = lost[0][1].error
    if problem is not None:
        return Verdict(None, components, problem)
    scale = asked / weight if weight else 1.0
    return Verdict(sum(w * r for w, r in there) * scale, components)


def _decided_by_policy(reward: Reward) -> bool:
    return (
        isinstance(reward, SelfPlay) and reward.mode == "pairwise" and reward.by == "scores"
    )  # fmt: skip


def _part(
    given: Mapping[str, Any], place: str, model_paths: Mapping[str, str], name: str | None
) -> Part:
    reward = _reward(given, place, model_paths)
    return Part(
        name or reward.type,
        reward,
        given.get("reward_fn_answer_key") or "solution",
        float(given.get("weight", 1.0)),
        bool(given.get("required", False)),
    )


def _reward(given: Mapping[str, Any], place: str, model_paths: Mapping[str, str]) -> Reward:
    rule = given.get("reward_fn_type")
    judged = _judged(given, place, model_paths)
    if rule is None:
        if judged is None:
            raise _invalid(
                f"{place or 'The job '}names no reward: set reward_fn_type, reward_provider or reward_model_type.",
                f"{place or '任务'}未指定奖励：请设置 reward_fn_type、reward_provider 或 reward_model_type。",
            )
        return _checked(judged, place)
    document = {"type": rule}
    if rule in ("math_verify", "self_play"):
        document |= {
            "extract": given.get("reward_fn_extract_answer") or "boxed",
            "compare": given.get("reward_fn_compare_method") or "numeric",
        }
    if rule == "self_play" and judged is not None:
        document |= {"mode": "pairwise", "by": judged["type"], judged["type"]: judged}
    return _checked(document | dict(given.get("reward_fn_config") or {}), place)


def _judged(
    given: Mapping[str, Any], place: str, model_paths: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the judge or the reward model that is named, as a document."""
    provider, kind = given.get("reward_provider"), given.get("reward_model_type")
    if provider is not None or kind == "api":
        model = given.get("reward_model_api_model")
        named = {"model": model} if model else {}
        return {"type": "judge", "provider": provider or PRIVATE} | named
    if kind != "model":
        return None
    path = model_paths.get(f"{place}reward_model_path") or given.get("reward_model_path")
    if not path:
        raise _invalid(
            f"{place}reward_model_type is model, and {place}reward_model_path names none.",
            f"{place}reward_model_type 为 model，但未设置 {place}reward_model_path。",
        )
    return {"type": "reward_model", "model_path": str(path)}


def _private(sources: Sequence[tuple[Mapping[str, Any], str]]) -> PrivateJudge | None:
    """Return the one judge that the job brings; its parts may ask for several models of it."""
    found = [
        (PrivateJudge(given.get("reward_model_api_base") or DASHSCOPE, f"{at}reward_model_api_key"))
        for given, at in sources
        if given.get("reward_model_type") == "api"
    ]
    if len({judge.api_base for judge in found}) > 1:
        raise _invalid(
            "Two components of rewards have a different reward_model_api_base; a job brings one judge of its own. "
            "Configure the other as a provider and name it by reward_provider.",
            "rewards 中有两个分量的 reward_model_api_base 不同；每个任务只能自带一个评判服务。请将另一个配置为服务商并用 reward_provider 引用。",
        )
    if not found:
        return None
    return replace(found[0], others=tuple(judge.secret for judge in found[1:]))


def _checked(document: Mapping[str, Any], place: str) -> Reward:
    try:
        return REWARD.validate_python(dict(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(step) for step in first["loc"][1:])
        raise _invalid(
            f"{place}reward_fn_config does not fit {document['type']}: {at} {first['msg']}.",
            f"{place}reward_fn_config 不适用于 {document['type']}：{at} {first['msg']}。",
        ) from None


def _invalid(en: str, zh: str) -> TrainingFailure:
    return TrainingFailure(Reason.CONFIG_INVALID, en, zh)
