"""Whatever is sent, the answer is a spec or sentences; and a spec survives being stored."""

import json
import math
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.specs import (
    EVERY_ALGORITHM,
    JobSpec,
    SpecInvalid,
    advise,
    job_config,
    parse_job_spec,
    spec_from_config,
    split_secrets,
)
from shared.specs.job_spec import every_field
from shared.specs.parameters import Parameter, described, parameters
from shared.specs.rewards import RewardComponent

JARGON = re.compile(r"pydantic|validat|Input should|literal|type=|dict|tuple|None\b|\bint\b|str_")

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=30)
    | st.sampled_from(["sft", "best", "api", "ssh", "self_play", "\ud800", "a\x00", "x" * 5000])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "weight", "reward_fn_type", "HF_TOKEN"]) | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
names = st.sampled_from(sorted(every_field())) | st.text(alphabet=st.characters(), max_size=20)
any_body = st.builds(
    lambda body, algorithm: body | algorithm,
    st.dictionaries(names, values, max_size=12),
    st.fixed_dictionaries({}, optional={"algorithm": st.sampled_from(EVERY_ALGORITHM)}),
)


def attempt(body: object) -> JobSpec | SpecInvalid:
    try:
        return parse_job_spec(body)
    except SpecInvalid as refused:
        return refused


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_body | values)
def test_any_json_is_a_spec_or_a_list_of_sentences(body: object) -> None:
    spec = attempt(body)
    if isinstance(spec, SpecInvalid):
        assert spec.errors
        json.dumps([error.as_json("zh") for error in spec.errors], allow_nan=False).encode()
        for error in spec.errors:
            own = repr(error.value)
            for text in (error.message_en, error.message_zh):
                assert len(text) < 800
                assert text.isprintable()
                text.encode()
            assert error.message_en[-1] in ".?"
            assert error.message_zh[-1] in "。？"
            said = error.message_en.replace(error.field, "").replace(own.strip("'\""), "")
            assert not JARGON.search(said) or JARGON.search(str(error.value)), said
        return
    assert parse_job_spec(job_config(spec)) == spec


def valid_value(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Return values a parameter takes on its own."""
    special: dict[str, st.SearchStrategy[Any]] = {
        "model_path": st.sampled_from(["gpt2", "/m", "job:0190c0de-0000-7000-8000-000000000001@5"]),
        "host": st.just("box1"),
        "ssh_host": st.just("10.0.0.1"),
        "ssh_username": st.just("me"),
        "reward_model_api_base": st.just("https://judge.example/v1"),
        "depends_on": st.lists(st.uuids().map(str), unique=True, max_size=3),
        "tags": st.lists(st.text("ab", min_size=1, max_size=3), unique=True, max_size=3),
        "lora_target_modules": st.just("all-linear") | st.just(["q_proj", "v_proj"]),
        "secrets": st.dictionaries(st.just("HF_TOKEN"), st.text("xyz", min_size=1)),
        "reward_fn_config": st.dictionaries(
            st.text("ab", max_size=2), st.integers() | st.lists(st.booleans()), max_size=3
        ),
        "stop_metric": st.sampled_from(["loss", "reward", "eval_loss"]),
    }
    special["reward_model_path"] = special["ref_model_path"] = special["model_path"]
    if parameter.name in special:
        found = special[parameter.name]
    elif parameter.choices:
        found = st.sampled_from(parameter.choices)
    elif parameter.kind == "boolean":
        found = st.booleans()
    elif parameter.kind == "integer":
        found = st.integers(int(parameter.minimum or 0), int(parameter.maximum or 0))
    elif parameter.kind == "number":
        low = parameter.minimum if parameter.minimum is not None else parameter.above
        high = parameter.maximum if parameter.maximum is not None else parameter.below
        assert low is not None
        assert high is not None
        found = st.floats(
            low,
            high,
            exclude_min=parameter.minimum is None,
            exclude_max=parameter.maximum is None,
        )
    elif parameter.kind == "components":
        found = st.lists(component(), min_size=1, max_size=3, unique_by=lambda c: str(c["name"]))
    else:
        found = st.text("abcdef -汉", min_size=1, max_size=20).filter(str.strip)
    return found | st.none() if parameter.nullable else found


def component() -> st.SearchStrategy[dict[str, Any]]:
    own = {name: p for name, p in described(RewardComponent).items() if name != "name"}
    return st.fixed_dictionaries(
        {"name": st.text("abc", min_size=1, max_size=3)},
        optional={name: valid_value(p) for name, p in own.items()},
    )


SWITCHES = {
    "lora_enabled": True,
    "run_mode": "ssh",
    "ssh_host": "box1",
    "distribution": "ddp",
}
SCORED = {"reward_fn_type": "math_verify"}
RULE: dict[str, dict[str, Any]] = {
    "sft": {"eval_generate": True, **SCORED},
    "dpo": {"eval_generate": True, **SCORED},
    "ppo": SCORED,
    "grpo": SCORED,
    "gspo": {},
    "reward_model": {},
}


@st.composite
def likely_bodies(draw: st.DrawFn) -> dict[str, Any]:
    algorithm = draw(st.sampled_from(EVERY_ALGORITHM))
    own = [p for p in parameters(algorithm) if p.name != "algorithm"]
    chosen = draw(st.lists(st.sampled_from(own), max_size=10, unique_by=lambda p: p.name))
    body = {p.name: draw(valid_value(p)) for p in chosen}
    return {
        "algorithm": algorithm,
        "model_path": "gpt2",
        "train_data_path": "d",
        "eval_data_path": "e",
        **(draw(st.sampled_from([{}, SWITCHES])) | RULE[algorithm]),
        **body,
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(likely_bodies())
def test_right_values_fail_only_for_standing_together_wrongly(body: dict[str, Any]) -> None:
    spec = attempt(body)
    if isinstance(spec, SpecInvalid):
        codes = {error.code for error in spec.errors}
        assert codes <= {"needs", "conflict", "not_allowed", "out_of_range"}, spec
        return
    public, secrets = split_secrets(spec)
    stored = json.loads(json.dumps(public, allow_nan=False))
    back = spec_from_config(stored)
    assert job_config(back) == public
    assert secrets or back == spec
    assert job_config(parse_job_spec(stored)) == public
    assert all(math.isfinite(value) for value in public.values() if isinstance(value, float))
    assert isinstance(advise(spec), list)
