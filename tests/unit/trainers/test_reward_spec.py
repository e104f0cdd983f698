"""From the flat parameters of a job to the rewards that are asked for, where, and how several become one."""

import pytest

from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.reward_spec import RewardPlan, combine, reward_plan, rule_plan
from services.gpu_agent.trainers.rollouts import Verdict
from shared.jobs.reasons import Reason

MATH = {"reward_fn_type": "math_verify"}


def plan(config, paths=None, n=4) -> RewardPlan:
    return reward_plan(config, paths or {}, n)


def documents(found: RewardPlan) -> list[dict]:
    return [p.reward.model_dump(mode="json", exclude_unset=True) for p in found.parts]


def test_a_rule_stays_on_the_host_and_takes_the_rest_from_its_config():
    found = plan(
        MATH
        | {
            "reward_fn_extract_answer": "json",
            "reward_fn_compare_method": "exact",
            "reward_fn_answer_key": "gold",
            "reward_fn_config": {"json_key": "x", "correct_reward": 3.0, "wrong_reward": -1.0},
        }
    )
    assert documents(found) == [
        {
            "type": "math_verify",
            "extract": "json",
            "compare": "exact",
            "json_key": "x",
            "correct_reward": 3.0,
            "wrong_reward": -1.0,
        }
    ]
    assert (found.central, found.needs_scores, found.combined) == (False, False, False)
    assert found.parts[0].answer_key == "gold"
    assert found.right_from == 1.0
    assert found.measured(Verdict(3.0)) == 3.0


@pytest.mark.parametrize(
    ("config", "document", "central"),
    [
        ({"reward_fn_type": "format_check", "reward_fn_config": {"preset": "boxed"}}, {"type": "format_check", "preset": "boxed"}, False),
        ({"reward_provider": "team"}, {"type": "judge", "provider": "team"}, True),
        ({"reward_model_type": "api", "reward_model_api_model": "m"}, {"type": "judge", "provider": "job", "model": "m"}, True),
        ({"reward_model_type": "model", "reward_model_path": "job:x"}, {"type": "reward_model", "model_path": "/here"}, False),
        ({"reward_fn_type": "self_play"}, {"type": "self_play", "extract": "boxed", "compare": "numeric"}, False),
        (
            {"reward_fn_type": "self_play", "reward_provider": "team"},
            {"type": "self_play", "extract": "boxed", "compare": "numeric", "mode": "pairwise", "by": "judge", "judge": {"type": "judge", "provider": "team"}},
            True,
        ),
    ],
)  # fmt: skip
def test_every_source_becomes_its_reward_at_its_place(config, document, central):
    found = plan(config, {"reward_model_path": "/here"})
    assert documents(found) == [document]
    assert found.central is central
    assert found.right_from == 0.5


def test_duels_by_the_policy_need_its_scores():
    by_policy = {"reward_fn_type": "self_play", "reward_fn_config": {"mode": "pairwise"}}
    assert plan(by_policy).needs_scores
    assert not plan({"reward_fn_type": "self_play"}).needs_scores


def test_the_jobs_own_judge_brings_its_address_and_the_name_of_its_key():
    found = plan({"reward_model_type": "api", "reward_model_api_base": "https://x/v1"})
    assert found.private is not None
    assert (found.private.api_base, found.private.secret) == (
        "https://x/v1",
        "reward_model_api_key",
    )
    listed = [{"name": "style", "reward_model_type": "api"}, {"name": "math", **MATH}]
    found = plan({"rewards": listed, "max_reward_cost": 2.0})
    assert found.private is not None
    assert found.private.secret == "rewards.style.reward_model_api_key"
    assert found.max_cost == 2.0
    assert [p.central for p in found.parts] == [True, False]
    both = [{"name": name, "reward_model_type": "api"} for name in ("style", "tone")]
    found = plan({"rewards": both})
    assert found.private is not None
    assert found.private.others == ("rewards.tone.reward_model_api_key",)


@pytest.mark.parametrize(
    ("config", "n", "word"),
    [
        ({}, 4, "names no reward"),
        (MATH | {"reward_fn_config": {"nonsense": 1}}, 4, "nonsense"),
        ({"reward_fn_type": "rule_based"}, 4, "rule"),
        ({"reward_fn_type": "self_play"}, 17, "rollout_n is 17"),
        ({"reward_model_type": "model"}, 4, "reward_model_path"),
        ({"rewards": [{"name": "a", "reward_model_type": "api", "reward_model_api_base": "https://a"}, {"name": "b", "reward_model_type": "api", "reward_model_api_base": "https://b"}]}, 4, "reward_provider"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_says_so(config, n, word):
    with pytest.raises(TrainingFailure, match=word) as caught:
        plan(config, n=n)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message_zh


WEIGHED = {
    "rewards": [
        {"name": "math", "weight": 2.0, "required": True, **MATH},
        {"name": "form", "weight": 1.0, "reward_fn_type": "format_check"},
        {"name": "long", "weight": -1.0, "reward_fn_type": "format_check"},
    ]
}


def test_parts_are_summed_by_weight_and_named():
    found = combine(plan(WEIGHED), [Verdict(1.0), Verdict(0.5, {"x": 0.5}), Verdict(1.0)])
    assert found.reward == 2.0 + 0.5 - 1.0
    assert found.components == {"math": 1.0, "form": 0.5, "form.x": 0.5, "long": 1.0}
    assert plan(WEIGHED).measured(found) == 1.0


def test_a_part_that_failed_is_never_zero():
    lost = Verdict(None, error="provider_timeout")
    # the parts that are there stand for all: (2 x 1 - 1 x 1) x 4 / 3
    found = combine(plan(WEIGHED), [Verdict(1.0), lost, Verdict(1.0)])
    assert found.reward == pytest.approx(4 / 3)
    assert found.components["form"] is None
    assert combine(plan(WEIGHED), [lost, Verdict(1.0), Verdict(1.0)]) == Verdict(
        None, {"math": None, "form": 1.0, "long": 1.0}, "provider_timeout"
    )
    assert combine(plan(WEIGHED), [lost, lost, lost]).reward is None


def test_what_competes_is_left_out_for_a_single_answer():
    both = {"rewards": [{"name": "vote", "reward_fn_type": "self_play"}, {"name": "math", **MATH}]}
    assert [p.name for p in plan(both).alone().parts] == ["math"]
    alone = plan({"reward_fn_type": "self_play", "reward_fn_extract_answer": "last_number"}).alone()
    assert documents(alone) == [
        {"type": "math_verify", "extract": "last_number", "compare": "numeric", "json_key": "answer"}
    ]  # fmt: skip


def test_a_rule_of_an_evaluation():
    assert rule_plan({}) is None
    assert rule_plan(MATH) == plan(MATH, n=1)
