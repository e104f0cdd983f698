"""What a step reports: its metrics, the samples that people read, and the sentence with which it pauses."""

import json

import pytest

from services.gpu_agent.trainers.context import EventWriter, StopFlag, TrainContext
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import batches
from services.gpu_agent.trainers.rollout_report import RolloutReport, metrics, samples
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt, Verdict
from shared.runs import RunSpec

PLAN = reward_plan({"reward_fn_type": "math_verify"}, {}, 4)


def rollout(group: str, text: str = "x", **fields) -> Rollout:
    return Rollout(RolloutPrompt(0, "p", (1,), "shown", "7"), text, group=group, **fields)


@pytest.fixture
def context(tmp_path):
    spec = RunSpec(
        job="j",
        attempt=1,
        algorithm="grpo",
        model_path="m",
        train_data_path="d",
        checkpoint_dir=tmp_path,
        work_dir=tmp_path,
        attempt_dir=tmp_path,
    )
    return TrainContext(spec, EventWriter(tmp_path / "events.jsonl"), StopFlag(tmp_path))


def events(context) -> list[dict]:
    lines = (context.spec.attempt_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_metrics_of_a_step():
    rollouts = [
        rollout("a", tokens=4),
        rollout("a", tokens=8, truncated=True),
        rollout("b", tokens=6),
    ]
    verdicts = [Verdict(1.0, {"x.y": 2.0}), Verdict(0.0, {"x.y": None}), Verdict(None, error="e")]
    found = metrics(PLAN, rollouts, verdicts)
    assert found["reward"] == 0.5
    assert found["reward_accuracy"] == 0.5
    assert found["group_variance"] == 0.25
    assert found["valid_reward_rate"] == pytest.approx(2 / 3)
    assert found["completion_length"] == 6.0
    assert found["truncated_rate"] == pytest.approx(1 / 3)
    assert found["reward_x_y"] == 2.0
    assert "win_rate" not in found
    blank = metrics(PLAN, rollouts, [Verdict(None, error="e")] * 3)
    assert (blank["valid_reward_rate"], "reward" in blank, "reward_accuracy" in blank) == (
        0.0,
        False,
        False,
    )


def test_win_rate_is_the_largest_cluster_or_what_the_winner_of_a_group_won():
    vote = reward_plan({"reward_fn_type": "self_play"}, {}, 4)
    rollouts = [rollout("a"), rollout("a"), rollout("b"), rollout("b")]
    shares = [0.5, 0.5, 1.0, 1.0]
    found = metrics(vote, rollouts, [Verdict(1.0, {"majority_share": s}) for s in shares])
    assert found["win_rate"] == 0.75
    duels = [Verdict(r, {"win_rate": r}) for r in (0.75, 0.25, None, 0.5)]
    assert metrics(vote, rollouts, duels)["win_rate"] == pytest.approx((0.75 + 0.5) / 2)


def test_samples_are_capped_at_whole_groups(context):
    rollouts = [rollout(f"g{n // 5}", str(n)) for n in range(40)]
    verdicts = [Verdict(float(n), {"a": 1.0, "b": None}) for n in range(40)]
    shown = list(samples(rollouts, verdicts, [0.5] * 40))
    assert [s.completion for s in shown] == [str(n) for n in range(15)]  # three groups of five
    assert (shown[2].reward, shown[2].components, shown[2].advantage, shown[2].reference) == (
        2.0,
        {"a": 1.0},
        0.5,
        "7",
    )
    large = [rollout("one", str(n)) for n in range(40)]
    assert len(list(samples(large, verdicts, [0.5] * 40))) == 16
    RolloutReport(context, PLAN, 0.8).step(3, rollouts, verdicts, [0.5] * 40, 0.1)
    written = [e for e in events(context) if e["type"] == "sample"]
    assert len(written) == 15
    assert {e["step"] for e in written} == {3}


def test_a_run_without_rewards_pauses_and_says_why(context):
    report = RolloutReport(context, PLAN, 0.5)
    lost = [Verdict(None, error="provider_timeout"), Verdict(None, error="provider_timeout"), Verdict(None, error="judge_refused")]  # fmt: skip
    for step in range(1, 6):
        assert context.stop_cause is None
        report.step(step, [rollout("a")] * 3, lost, [0.0] * 3, 0.1)
    assert context.stop_cause == "reward_unavailable"
    english, chinese = context.stop_message
    assert "last 5 steps (provider_timeout × 10, judge_refused × 5)" in english
    assert "5 步" in chinese


def test_a_run_with_too_few_rewards_names_rate_and_threshold(context):
    report = RolloutReport(context, PLAN, 0.75)
    mixed = [Verdict(1.0), Verdict(None, error="provider_timeout")]
    for step in range(1, 51):
        assert context.stop_cause is None
        report.step(step, [rollout("a")] * 2, mixed, [0.0] * 2, 0.1)
    assert "Only 50%" in context.stop_message[0]
    assert "min_valid_reward_rate is 0.75" in context.stop_message[0]


def test_what_a_stop_cut_short_says_nothing_about_the_service(context):
    report = RolloutReport(context, PLAN, 0.5)
    context.stop.asked = True
    for step in range(1, 9):
        report.step(step, [rollout("a")], [Verdict(None, error="cancelled")], [0.0], 0.1)
    assert context.stop_cause is None


def test_requests_hold_whole_groups_and_stay_below_both_limits():
    items = [{"id": str(n), "group_id": f"g{n // 5}", "prompt": "", "completion": ""} for n in range(2101)]  # fmt: skip
    split = list(batches(items))
    assert [i["id"] for b in split for i in b] == [str(n) for n in range(2101)]
    assert all(len(b) <= 1024 for b in split)
    assert [len(b) for b in split] == [1020, 1020, 61]
    heavy = [{"id": str(n), "prompt": "", "completion": "x" * 3_000_000} for n in range(5)]
    assert [len(b) for b in batches(heavy)] == [2, 2, 1]
