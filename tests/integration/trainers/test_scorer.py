"""The trainer's side of rewards against the real service: batches, restarts, silence, refusals, judges, a stop."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from services.gpu_agent.core import stall
from services.gpu_agent.trainers import reward_calls, rewarding
from services.gpu_agent.trainers.context import EventWriter, StopFlag, TrainContext
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt
from shared.jobs.reasons import Reason
from shared.runs import RunSpec
from tests.integration.reward.conftest import Service
from tests.provider.process import MockProvider
from tests.provider.server import KEY, score_of

pytestmark = pytest.mark.integration
MATH = {"reward_fn_type": "math_verify"}


def context(tmp_path: Path, secrets: dict[str, str] | None = None, **fields) -> TrainContext:
    spec = RunSpec(
        job="j",
        attempt=1,
        algorithm="grpo",
        model_path="m",
        train_data_path="d",
        checkpoint_dir=tmp_path,
        work_dir=tmp_path,
        attempt_dir=tmp_path,
        **fields,
    )
    events = EventWriter(tmp_path / "events.jsonl")
    return TrainContext(spec, events, StopFlag(tmp_path), named_secrets=secrets or {})


def rollout(text: str, group: str = "", solution: str | None = "7", score=None) -> Rollout:
    prompt = RolloutPrompt(0, "p", (1,), "3+4=", solution, {"solution": solution})
    return Rollout(prompt, text, group=group, score=score)


def opened(where: TrainContext, config: dict, n: int = 4) -> Scorer:
    return Scorer(where, reward_plan(config, {}, n))


def test_rules_are_scored_in_order_and_what_has_no_answer_has_no_reward(tmp_path, rules_file):
    scorer = opened(context(tmp_path, rules_file=rules_file), MATH)
    texts = [f"\\boxed{{{n % 9}}}" for n in range(2500)]
    verdicts = scorer.score([rollout(t) for t in texts] + [rollout("\\boxed{7}", solution=None)])
    assert [v.reward for v in verdicts[:-1]] == [float(n % 9 == 7) for n in range(2500)]
    assert (verdicts[-1].reward, verdicts[-1].error) == (None, "gold_missing")
    assert scorer.seconds > 0
    scorer.close()
    scorer.close()  # twice is harmless


def test_groups_compete_and_the_policy_decides_duels_by_its_scores(tmp_path, rules_file):
    where = context(tmp_path, rules_file=rules_file)
    vote = opened(where, {"reward_fn_type": "self_play"})
    texts = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "no"]
    verdicts = vote.score([rollout(t, "a") for t in texts] + [rollout(t, "b") for t in texts[::-1]])
    assert [v.reward for v in verdicts] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert verdicts[0].components == {"majority_share": 0.5}
    duels = {"reward_fn_type": "self_play", "reward_fn_config": {"mode": "pairwise"}}
    by_policy = opened(where, duels)
    scores = (-0.5, -0.1, -0.9, -0.2)
    verdicts = by_policy.score([rollout(str(s), "a", score=s) for s in scores])
    assert [round(v.reward or 0, 3) for v in verdicts] == [0.333, 1.0, 0.0, 0.667]
    vote.close()
    by_policy.close()


def test_a_service_that_comes_back_on_another_port_is_found(
    tmp_path, monkeypatch, capfd, rules_file
):
    monkeypatch.setattr(rewarding, "TELL_AFTER_SECONDS", 0.5)
    file = tmp_path / "reward.json"
    file.write_text('{"url": "http://127.0.0.1:9"}')  # where it was: nothing listens there
    scorer = opened(context(tmp_path, rules_file=file), MATH)
    back = threading.Timer(1.5, lambda: file.write_text(Path(rules_file).read_text()))
    back.start()
    assert scorer.score([rollout("\\boxed{7}")])[0].reward == 1.0
    back.join()
    assert scorer.seconds > 1.4
    assert "Waits for the reward service for 1 s (service_away)" in capfd.readouterr().out
    assert '"type":"waiting"' in (tmp_path / "events.jsonl").read_text()  # to the agent: no stall
    assert rewarding.TELL_EVERY_SECONDS < stall.LEAST_SECONDS / 2
    scorer.close()


def test_a_service_that_stays_away_gives_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(reward_calls, "AWAY_SECONDS", 0.3)
    scorer = opened(context(tmp_path, rules_file=tmp_path / "nothing.json"), MATH)
    verdicts = scorer.score([rollout("\\boxed{7}")] * 3)
    assert [(v.reward, v.error) for v in verdicts] == [(None, "service_away")] * 3
    scorer.close()


def test_a_stop_gives_up_what_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rewarding, "GRACE_SECONDS", 0.3)
    where = context(tmp_path, rules_file=tmp_path / "nothing.json")
    scorer = opened(where, MATH)
    where.stop.asked = True
    began = time.monotonic()
    assert scorer.score([rollout("x")])[0].error == "cancelled"
    assert time.monotonic() - began < 20
    scorer.close()


def test_a_reward_that_is_no_reward_ends_the_run_with_the_services_words(tmp_path, rules_file):
    config = {"reward_fn_type": "format_check", "reward_fn_config": {"preset": "regex", "pattern": "("}}  # fmt: skip
    scorer = opened(context(tmp_path, rules_file=rules_file), config)
    with pytest.raises(TrainingFailure, match="refuses the reward") as caught:
        scorer.score([rollout("x")])
    assert caught.value.reason is Reason.CONFIG_INVALID
    scorer.close()
    with pytest.raises(TrainingFailure, match="no address") as caught:
        opened(context(tmp_path), MATH)
    assert caught.value.reason is Reason.REWARD_UNAVAILABLE


def test_a_jobs_own_judge_is_announced_and_mixed_with_rules(tmp_path, rules_file):
    """The key goes to the central service alone; after its restart the judge is announced again."""
    config = {
        "rewards": [
            {"name": "math", "weight": 2.0, "required": True, **MATH},
            {"name": "style", "reward_model_type": "api", "reward_model_api_model": "qwen-plus"},
        ],
    }
    token = "central-token-0123456789"
    env = {
        "TRAINYARD_API_TOKEN": token,
        "TRAINYARD_REWARD_ALLOW_HTTP_HOSTS": "127.0.0.1",
    }
    with MockProvider() as provider, Service(tmp_path / "central", **env) as central:
        config["rewards"][1]["reward_model_api_base"] = provider.base
        secrets = {
            "rewards.style.reward_model_api_key": KEY,
            "TRAINYARD_REWARD_TOKEN": token,
        }
        where = context(tmp_path, secrets, rules_file=rules_file, reward_url=central.url)
        scorer = opened(where, config)
        found = scorer.score([rollout("\\boxed{7}"), rollout("\\boxed{8}")])
        style = [score_of(t) / 10 for t in ("\\boxed{7}", "\\boxed{8}")]
        assert [v.reward for v in found] == pytest.approx([2.0 + style[0], style[1]])
        assert found[0].components == {"math": 1.0, "style": style[0]}

        central.client.put(
            "/v1/jobs/j/provider",
            json={"api_base": provider.base, "api_key": "another"},
            headers={"Authorization": f"Bearer {token}"},
        )
        lost = scorer.score([rollout("\\boxed{6}"), rollout("other", solution=None)])
        # style is not required: what is there stands for all (x 3 / 2)
        assert (lost[0].reward, lost[0].components["style"]) == (0.0, None)
        assert (lost[1].reward, lost[1].error) == (None, "gold_missing")
        headers = {"Authorization": f"Bearer {token}"}
        central.client.delete("/v1/providers/job:j", headers=headers)  # forgotten, as by a restart
        again = scorer.score([rollout("\\boxed{5}")])
        assert again[0].components["style"] == score_of("\\boxed{5}") / 10
        scorer.close()
        refused = context(tmp_path, secrets | {"TRAINYARD_REWARD_TOKEN": "x"}, rules_file=rules_file, reward_url=central.url)  # fmt: skip
        with pytest.raises(TrainingFailure, match="auth_required"):
            opened(refused, config)
