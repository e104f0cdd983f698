"""What is stored and shown of a spec: everything but its secrets, and back again unchanged."""

import json
from typing import Any

import pytest

from shared.specs import (
    EVERY_ALGORITHM,
    SpecInvalid,
    dependencies,
    job_config,
    parse_job_spec,
    spec_from_config,
    split_secrets,
    with_secrets,
)

Bodies = dict[str, dict[str, Any]]
ONE = "0190c0de-0000-7000-8000-000000000001"
TWO = "0190c0de-0000-7000-8000-000000000002"


@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_a_config_read_back_from_json_is_the_same_spec(minimal: Bodies, algorithm: str) -> None:
    body = {**minimal[algorithm], "tags": ["a"], "depends_on": [ONE]}
    spec = parse_job_spec(body)
    stored = json.loads(json.dumps(job_config(spec), allow_nan=False))
    assert spec_from_config(stored) == spec
    assert parse_job_spec(stored) == spec
    assert next(iter(stored)) == "algorithm"


def test_fields_of_a_newer_version_are_left_out(minimal: Bodies) -> None:
    body = {**minimal["gspo"], "rewards": [{"name": "a", "reward_fn_type": "math_verify"}]}
    spec = parse_job_spec(body)
    config: dict[str, Any] = json.loads(json.dumps(job_config(spec)))
    config["invented_later"] = {"x": 1}
    config["rewards"][0]["invented_too"] = 1
    assert spec_from_config(config) == spec


@pytest.mark.parametrize("config", [{}, {"algorithm": "rlhf2"}, {"algorithm": "sft"}])
def test_what_is_no_config_is_refused_in_words(config: dict[str, object]) -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec_from_config(config)
    assert caught.value.errors


def secretive(minimal: Bodies) -> dict[str, Any]:
    return {
        **minimal["gspo"],
        "run_mode": "ssh",
        "ssh_host": "box1",
        "ssh_private_key": "-----BEGIN CANARY-1\nCANARY-2\n-----END",
        "reward_model_type": "api",
        "reward_model_api_key": "CANARY-3",
        "secrets": {"HF_TOKEN": "CANARY-4"},
    }


def test_secrets_are_split_off_and_can_be_put_back(minimal: Bodies) -> None:
    spec = parse_job_spec(secretive(minimal))
    public, secrets = split_secrets(spec)
    assert "CANARY" not in json.dumps(public)
    assert (public["ssh_private_key"], public["reward_model_api_key"], public["secrets"]) == (
        None,
        None,
        {},
    )
    assert secrets == {
        "ssh_private_key": "-----BEGIN CANARY-1\nCANARY-2\n-----END",
        "reward_model_api_key": "CANARY-3",
        "HF_TOKEN": "CANARY-4",
    }
    assert with_secrets(spec_from_config(public), secrets) == spec


def test_secrets_of_components_bear_the_components_name(minimal: Bodies) -> None:
    judge = {"name": "judge", "reward_model_type": "api", "reward_model_api_key": "CANARY"}
    rule = {"name": "rule", "reward_fn_type": "math_verify"}
    spec = parse_job_spec({**minimal["gspo"], "rewards": [judge, rule]})
    public, secrets = split_secrets(spec)
    assert "CANARY" not in json.dumps(public)
    assert secrets == {"rewards.judge.reward_model_api_key": "CANARY"}
    assert with_secrets(spec_from_config(public), secrets) == spec


def test_a_spec_can_be_logged_without_telling_a_secret(minimal: Bodies) -> None:
    spec = parse_job_spec(secretive(minimal))
    assert "CANARY" not in repr(spec) + str(spec) + spec.model_dump_json()


def test_dependencies_are_the_named_jobs_and_those_whose_checkpoint_is_used(
    minimal: Bodies,
) -> None:
    body = {
        **minimal["ppo"],
        "depends_on": [TWO.upper()],
        "model_path": f"job:{ONE}@best",
        "ref_model_path": f"job:{TWO}",
    }
    assert dependencies(parse_job_spec(body)) == (TWO, ONE)
    assert dependencies(parse_job_spec(minimal["sft"])) == ()
