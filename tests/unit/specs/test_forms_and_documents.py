"""Forms, JSON Schema, documents and advice all come from the same specs."""

import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from shared.jobs.reasons import Lang
from shared.specs import (
    EVERY_ALGORITHM,
    SPECS,
    Algorithm,
    advise,
    form_schema,
    job_schema,
    parse_job_spec,
)
from shared.specs.document import PAGES, parameters_page
from shared.specs.hints import Group
from shared.specs.parameters import parameters

Bodies = dict[str, dict[str, Any]]
ROOT = Path(__file__).parents[3]
SECRETS = {"ssh_password", "ssh_private_key", "reward_model_api_key", "secrets"}


@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_every_parameter_has_a_group_and_a_hint_in_both_languages(algorithm: Algorithm) -> None:
    found = parameters(algorithm)
    assert {p.name for p in found} == set(SPECS[algorithm].model_fields)
    for parameter in found:
        assert parameter.group in get_args(Group)
        assert 5 < len(parameter.hint["en"]) < 160, parameter.name
        assert re.search(r"[\u4e00-\u9fff]", parameter.hint["zh"]), parameter.name
        assert parameter.hint["en"].endswith("."), parameter.name
        assert parameter.hint["zh"].endswith("。"), parameter.name
        assert parameter.secret == (parameter.name in SECRETS)
        number = parameter.kind in ("integer", "number")
        assert not number or " x" in str(parameter.allowed()) or "x " in str(parameter.allowed())


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_a_form_starts_with_the_essentials_and_names_its_groups(
    algorithm: Algorithm, lang: Lang
) -> None:
    form = form_schema(algorithm, lang)
    names = [field["name"] for field in form["fields"]]
    assert names[:3] == ["algorithm", "name", "description"]
    assert len(names) == len(set(names))
    groups = [field["group"] for field in form["fields"]]
    assert [group["name"] for group in form["groups"]] == list(dict.fromkeys(groups))


@pytest.mark.parametrize("algorithm", EVERY_ALGORITHM)
def test_a_form_sent_as_it_opens_is_a_valid_body(algorithm: Algorithm, minimal: Bodies) -> None:
    form = form_schema(algorithm, "en")
    defaults = {f["name"]: f["default"] for f in form["fields"] if not f["required"]}
    spec = parse_job_spec({**defaults, **minimal[algorithm]})
    assert spec == parse_job_spec(minimal[algorithm])


def test_the_json_schema_takes_what_the_parser_takes(minimal: Bodies) -> None:
    schema = job_schema()
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    for body in minimal.values():
        checker.validate(body)
        assert not checker.is_valid({**body, "unknown": 1})
        assert not checker.is_valid({**body, "num_gpus": "1"})
    assert not checker.is_valid({"model_path": "m", "train_data_path": "t"})


def test_the_json_schema_marks_secrets_write_only() -> None:
    properties = job_schema()["$defs"]["GrpoSpec"]["properties"]
    for name in SECRETS:
        assert "'writeOnly': True" in str(properties[name]), name


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_pages_are_the_ones_the_specs_give(lang: Lang) -> None:
    page = (ROOT / PAGES[lang]).read_text(encoding="utf-8")
    assert page == parameters_page(lang), "run: python -m shared.specs.document"


@pytest.mark.parametrize(
    ("algorithm", "fields", "codes"),
    [
        ("sft", {}, set()),
        ("grpo", {}, set()),
        ("sft", {"lora_enabled": True}, set()),
        ("sft", {"lora_enabled": True, "lora_rank": 64, "lora_alpha": 128}, {"lora_rank"}),
        ("sft", {"lora_enabled": True, "lora_rank": 16}, {"lora_alpha"}),
        ("sft", {"distribution": "fsdp"}, {"fsdp_alone"}),
        ("dpo", {}, set()),
        ("dpo", {"beta": 0.01}, {"beta_unusual"}),
        ("ppo", {}, {"ppo_memory"}),
        (
            "ppo",
            {"kl_coef": 0.5, "clip_ratio": 0.9, "rollout_n": 2},
            {"ppo_memory", "kl_coef_unusual", "clip_ratio_unusual", "rollout_n_unusual"},
        ),
        ("grpo", {"max_completion_length": 512}, {"completion_capped"}),
        ("gspo", {"reward_model_type": "api"}, {"reward_key_missing"}),
    ],
)
def test_advice_is_given_where_the_product_gives_it(
    minimal: Bodies, algorithm: str, fields: dict[str, Any], codes: set[str]
) -> None:
    given = advise(parse_job_spec({**minimal[algorithm], **fields}))
    assert {advice.code for advice in given} == codes
    for advice in given:
        assert advice.message("en").endswith(".")
        assert advice.message("zh").endswith("。")


@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
@pytest.mark.parametrize(("lang", "word"), [("en", "has no effect"), ("zh", "不起作用")])
def test_a_bound_that_is_never_met_says_so(algorithm: Algorithm, lang: Lang, word: str) -> None:
    def hint(of: Algorithm) -> str:
        return str(
            next(f["hint"] for f in form_schema(of, lang)["fields"] if f["name"] == "clip_ratio")
        )

    assert word in hint(algorithm)
    assert word not in hint("ppo")
