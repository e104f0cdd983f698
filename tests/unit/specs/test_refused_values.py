"""Bad values are refused with a sentence: types, ranges, characters, names, and nothing secret told."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from shared.specs import FieldError, SpecInvalid, parse_job_spec

Refused = Callable[[object], dict[str, FieldError]]
Bodies = dict[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("num_gpus", "5", "wrong_type"),
        ("num_gpus", True, "wrong_type"),
        ("num_gpus", 5.5, "wrong_type"),
        ("num_gpus", 0, "out_of_range"),
        ("num_gpus", None, "wrong_type"),
        ("seed", 2**70, "out_of_range"),
        ("save_steps", 0, "out_of_range"),
        ("eval_steps", -1, "out_of_range"),
        ("max_steps", 0, "out_of_range"),
        ("learning_rate", math.nan, "not_finite"),
        ("learning_rate", math.inf, "not_finite"),
        ("learning_rate", 0, "out_of_range"),
        ("learning_rate", True, "wrong_type"),
        ("learning_rate", "1e-5", "wrong_type"),
        ("adam_beta1", 1, "out_of_range"),
        ("priority", 101, "out_of_range"),
        ("packing", 1, "wrong_type"),
        ("precision", "bf61", "not_allowed"),
        ("precision", 16, "not_allowed"),
        ("name", "a\x00b", "invalid_characters"),
        ("name", "a\nb", "invalid_characters"),
        ("name", "\x1b[31mred", "invalid_characters"),
        ("name", "gpj.\u202efdp", "invalid_characters"),
        ("name", "\ud800", "invalid_encoding"),
        ("name", "x" * 201, "too_long"),
        ("name", "  ", "blank"),
        ("name", 7, "wrong_type"),
        ("description", "x" * 4001, "too_long"),
        ("train_data_path", "", "too_short"),
        ("train_data_path", "a\x00", "invalid_characters"),
        ("tags", "a", "wrong_type"),
        ("tags", ["a", "a"], "duplicate"),
        ("tags", [str(n) for n in range(21)], "too_long"),
        ("depends_on", ["0190c0de-0000-7000-8000-000000000001"] * 2, "duplicate"),
        ("model_path", "job:nonsense", "invalid_model_path"),
        ("model_path", "https://huggingface.co/Qwen/Qwen2.5-0.5B", "invalid_model_path"),
        ("ssh_host", "-oProxyCommand=touch x", "invalid_hostname"),
        ("ssh_host", "a b", "invalid_hostname"),
        ("ssh_host", "x;rm", "invalid_hostname"),
        ("ssh_host", "x" * 300, "too_long"),
        ("ssh_username", "-l root", "invalid_username"),
        ("ssh_port", 99999, "out_of_range"),
        ("lora_target_modules", [], "wrong_type"),
        ("lora_target_modules", ["q\x00"], "invalid_name"),
        ("reward_fn_config", {"a": {"b": math.nan}}, "not_finite"),
        ("reward_fn_config", {"a": "x" * 70000}, "too_large"),
        ("reward_fn_config", {"a": ["\x00"]}, "invalid_characters"),
        ("reward_fn_config", {"\x00": 1}, "invalid_characters"),
        ("reward_fn_config", {"a": 2**70}, "out_of_range"),
        ("reward_fn_config", [], "wrong_type"),
    ],
)
def test_a_bad_value_is_named_with_its_code(
    minimal: Bodies, refused: Refused, field: str, value: object, code: str
) -> None:
    errors = refused({**minimal["sft"], field: value})
    assert errors[field].code == code
    assert field in errors[field].message("en")
    assert field in errors[field].message("zh")


@pytest.mark.parametrize("field", ["seed", "num_epochs"])
def test_a_number_of_thousands_of_digits_is_out_of_range(
    minimal: Bodies, refused: Refused, field: str
) -> None:
    error = refused({**minimal["sft"], field: 10**5000})[field]
    assert (error.code, error.value) == ("out_of_range", "10^5000")


def test_entries_of_lists_and_objects_are_named_by_their_place(
    minimal: Bodies, refused: Refused
) -> None:
    body = {
        **minimal["sft"],
        "tags": ["a", 5],
        "depends_on": ["x"],
        "secrets": {"lower": "v", "LD_PRELOAD": "v", "OK": 5},
    }
    codes = {field: error.code for field, error in refused(body).items()}
    assert codes == {
        "tags.1": "wrong_type",
        "depends_on.0": "invalid_uuid",
        "secrets.lower": "invalid_name",
        "secrets.LD_PRELOAD": "reserved_name",
        "secrets.OK": "wrong_type",
    }


def test_very_deep_configuration_is_refused_not_recursed_into(
    minimal: Bodies, refused: Refused
) -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert refused({**minimal["grpo"], "reward_fn_config": deep})["reward_fn_config"].code == (
        "too_large"
    )
    while deep:  # a dict this deep would overflow the stack when it is freed at once
        deep = deep.pop("a", None)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("learning_rte", "learning_rate"),
        ("lr", "learning_rate"),
        ("dataset", "train_data_path"),
        ("num_train_epochs", "num_epochs"),
        ("batchsize", "batch_size"),
        ("Seed", "seed"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_name(
    minimal: Bodies, refused: Refused, name: str, nearest: str
) -> None:
    error = refused({**minimal["sft"], name: 1})[name]
    assert (error.code, error.allowed) == ("unknown_field", [nearest])
    assert f"Did you mean {nearest}?" in error.message_en
    assert nearest in error.message_zh


@pytest.mark.parametrize(
    ("algorithm", "field", "owners"),
    [
        ("sft", "rollout_n", "ppo, grpo, gspo"),
        ("sft", "beta", "dpo"),
        ("sft", "kl_coef", "dpo, ppo, grpo, gspo"),
        ("dpo", "packing", "sft"),
        ("grpo", "vf_coef", "ppo"),
        ("reward_model", "reward_fn_type", "sft, dpo, ppo, grpo, gspo"),
    ],
)
def test_a_parameter_of_another_algorithm_is_refused_saying_whose_it_is(
    minimal: Bodies, refused: Refused, algorithm: str, field: str, owners: str
) -> None:
    error = refused({**minimal[algorithm], field: 1})[field]
    assert error.code == "wrong_algorithm"
    assert algorithm in error.message_en
    assert owners in error.message_en
    assert owners in error.message_zh


def test_all_mistakes_of_a_body_come_at_once(refused: Refused) -> None:
    errors = refused(
        {
            "algorithm": "sft",
            "learning_rte": 1,
            "rollout_n": 4,
            "num_gpus": "5",
            "lora_rank": 4,
            "stop_value": 1.0,
        }
    )
    assert {field: error.code for field, error in errors.items()} == {
        "learning_rte": "unknown_field",
        "rollout_n": "wrong_algorithm",
        "model_path": "required",
        "train_data_path": "required",
        "num_gpus": "wrong_type",
        "lora_rank": "needs",
        "stop_metric": "needs",
    }


@pytest.mark.parametrize("body", [None, [], "sft", 5, True])
def test_a_body_that_is_no_object_is_told_what_a_job_is(body: object, refused: Refused) -> None:
    assert refused(body)["body"].code == "wrong_type"


@pytest.mark.parametrize(
    ("value", "code", "meant"),
    [
        ("grop", "not_allowed", "grpo"),
        ("SFT", "not_allowed", "sft"),
        (5, "wrong_type", None),
        (["sft"], "wrong_type", None),
        (None, "required", None),
    ],
)
def test_an_unknown_algorithm_is_refused_beside_the_other_mistakes(
    refused: Refused, value: object, code: str, meant: str | None
) -> None:
    errors = refused({"algorithm": value, "learning_rate": math.nan, "rollout_n": 4, "lr": 1})
    assert errors["algorithm"].code == code
    assert meant is None or f"Did you mean {meant}?" in errors["algorithm"].message_en
    assert errors["learning_rate"].code == "not_finite"
    assert errors["lr"].code == "unknown_field"
    assert "rollout_n" not in errors


def test_a_body_of_thousands_of_fields_is_one_short_error(refused: Refused) -> None:
    errors = refused({f"field{n}": n for n in range(100_000)})
    assert list(errors) == ["body"]


CANARY = "CANARY-93b1c5d2"


@pytest.mark.parametrize(
    "fields",
    [
        {"ssh_password": [CANARY]},
        {"ssh_password": CANARY + "\n"},
        {"ssh_private_key": CANARY + "\x00"},
        {"ssh_private_key": {CANARY: CANARY}},
        {"reward_model_api_key": CANARY},
        {"reward_model_apikey": CANARY},
        {"api_key": CANARY},
        {"hf_token": CANARY},
        {"description": {"key": CANARY}},
        {"secrets": {"HF_TOKEN": CANARY + "\x00", "lower": CANARY}},
        {"secrets": [CANARY]},
        {"secrets": CANARY},
        {"gpu_type": "sk-" + CANARY + "\n"},
        {"train_data_path": f"https://user:{CANARY}@host/x\n"},
        {"rewards": [{"name": "a", "reward_model_api_key": CANARY}]},
    ],
)
def test_a_refusal_never_repeats_what_may_be_a_secret(
    minimal: Bodies, fields: dict[str, object]
) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse_job_spec({**minimal["sft"], **fields})
    told = [error.as_json("en") | {"zh": error.message_zh} for error in caught.value.errors]
    assert CANARY not in json.dumps(told, ensure_ascii=False)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)


def test_a_refusal_is_a_problem_document_in_both_languages(minimal: Bodies) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse_job_spec({**minimal["sft"], "num_gpus": 0, "seed": -1})
    problem = caught.value.problem("zh")
    assert (problem["status"], problem["code"], len(problem["errors"])) == (422, "invalid", 2)
    assert problem["errors"][0]["message"] == caught.value.errors[0].message("zh")
    assert caught.value.errors[0].message("en") in str(caught.value)


def test_a_list_with_one_wrong_entry_is_not_called_too_short(minimal: Bodies) -> None:
    component = {"name": "a", "reward_fn_config": {"x": 2**53 + 1}}
    with pytest.raises(SpecInvalid) as refused:
        parse_job_spec({**minimal["grpo"], "reward_fn_type": None, "rewards": [component]})
    assert [e.code for e in refused.value.errors] == ["out_of_range"]
