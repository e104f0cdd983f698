"""`parse_job_spec`: the one place where a user's body becomes a `JobSpec`, or a list of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from shared.specs.base import Algorithm, BaseSpec
from shared.specs.dpo import DpoSpec
from shared.specs.gspo import GspoSpec
from shared.specs.job_spec import EVERY_ALGORITHM, SPECS, JobSpec, algorithms_with, every_field
from shared.specs.model_path import (
    HubModel,
    JobModel,
    LocalModel,
    ModelSource,
    StageModel,
    parse_model_path,
)
from shared.specs.problems import FieldError, SpecInvalid, names_a_secret, quoted, shown
from shared.specs.reward_rules import rewards
from shared.specs.rules import RULES, Clash, stages
from shared.specs.translate import field_errors, path, unknown_field
from shared.specs.wording import told

ERRORS_AT_MOST: Final = 100
FIELDS_AT_MOST: Final = 300


def parse_job_spec(body: object, *, in_pipeline: bool = False) -> JobSpec:
    """Return the spec a body describes; `stage:` model paths are allowed only `in_pipeline`.

    Raises:
        SpecInvalid: with every mistake found, each a sentence in both languages.
    """
    fields = _fields(body)
    algorithm = _algorithm(fields.get("algorithm"))
    errors = _strangers(fields, algorithm)
    if algorithm is None:
        errors.insert(0, _wrong_algorithm(fields))
        _, more = _fit(BaseSpec, _known(fields, BaseSpec))
        raise SpecInvalid((errors + more)[:ERRORS_AT_MOST])
    spec, more = _fit(SPECS[algorithm], _known(fields, SPECS[algorithm]))
    errors += more
    bad = {error.field.partition(".")[0] for error in more}
    errors += [
        _told(clash, fields)
        for clash in _clashes(spec, frozenset(fields), in_pipeline)
        if not _hits(clash, bad)
    ]
    if errors:
        raise SpecInvalid(errors[:ERRORS_AT_MOST])
    return _settled(spec, frozenset(fields))


def _fields(body: object) -> dict[str, object]:
    if not isinstance(body, Mapping):
        raise SpecInvalid(
            [
                told(
                    "body",
                    body,
                    "wrong_type",
                    f'The body is {quoted("", body)}; a job is a JSON object such as {{"algorithm": "sft", "model_path": "…", "train_data_path": "…"}}.',
                    f'请求体为 {quoted("", body)}；任务应为 JSON 对象，例如 {{"algorithm": "sft", "model_path": "…", "train_data_path": "…"}}。',
                )
            ]
        )
    if len(body) > FIELDS_AT_MOST:
        raise SpecInvalid(
            [
                told(
                    "body",
                    body,
                    "too_long",
                    f"The body has {len(body)} fields; a job has fewer than {FIELDS_AT_MOST}. Send one job.",
                    f"请求体有 {len(body)} 个字段，任务的字段少于 {FIELDS_AT_MOST} 个。请只提交一个任务。",
                )
            ]
        )
    return {name if isinstance(name, str) else repr(name): value for name, value in body.items()}


def _algorithm(value: object) -> Algorithm | None:
    return next((name for name in EVERY_ALGORITHM if name == value), None)


def _wrong_algorithm(fields: dict[str, object]) -> FieldError:
    choices = ", ".join(EVERY_ALGORITHM)
    value = fields.get("algorithm")
    if value is None:
        en = f"algorithm is missing; give one of {choices}."
        zh = f"缺少 algorithm，请选择：{choices}。"
        code = "required"
    else:
        near = get_close_matches(str(shown("", value)).lower(), EVERY_ALGORITHM, n=1)
        said = quoted("algorithm", value)
        en = f"algorithm is {said}; it must be one of {choices}." + "".join(
            f" Did you mean {n}?" for n in near
        )
        zh = f"algorithm 的值为 {said}，应为以下之一：{choices}。" + "".join(
            f"是否应为 {n}？" for n in near
        )
        code = "not_allowed" if isinstance(value, str) else "wrong_type"
    return FieldError("algorithm", shown("algorithm", value), en, zh, list(EVERY_ALGORITHM), code)


def _strangers(fields: dict[str, object], algorithm: Algorithm | None) -> list[FieldError]:
    known = every_field() if algorithm is None else frozenset(SPECS[algorithm].model_fields)
    strangers = [name for name in fields if name not in known][:ERRORS_AT_MOST]
    return [_stranger(name, fields[name], algorithm, sorted(known)) for name in strangers]


def _stranger(
    name: str, value: object, algorithm: Algorithm | None, known: list[str]
) -> FieldError:
    owners = algorithms_with(name)
    if not owners:
        return unknown_field(path((name,)), name, value, known)
    names = ", ".join(owners)
    near = get_close_matches(name, known, n=1, cutoff=0.75)
    return FieldError(
        name,
        "***" if names_a_secret(name) else shown(name, value),
        f"{name} does not belong to {algorithm}; it is a parameter of {names}. Remove it or change the algorithm."
        + "".join(f" The nearest parameter of {algorithm} is {n}." for n in near),
        f"{name} 不属于 {algorithm}，它是 {names} 的参数。请删除，或更换算法。"
        + "".join(f"{algorithm} 中最接近的参数是 {n}。" for n in near),
        near or None,
        "wrong_algorithm",
    )


def _known(fields: dict[str, object], model: type[BaseModel]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name in model.model_fields}


def _fit(model: type[Any], fields: dict[str, object]) -> tuple[Any, list[FieldError]]:
    """Return a spec of what is right in the fields, so that rules can be checked beside field errors."""
    try:
        return model.model_validate(fields), []
    except ValidationError as problem:
        errors = field_errors(model, problem)
        bad = {str(error["loc"][0]) for error in problem.errors(include_url=False)}
    stand_ins: dict[str, object] = {"model_path": "-/-", "train_data_path": "-"}
    good = {name: value for name, value in fields.items() if name not in bad}
    return model.model_validate({**stand_ins, **good}), errors


def _clashes(spec: JobSpec, given: frozenset[str], in_pipeline: bool) -> list[Clash]:
    found = [clash for rule in (*RULES, rewards) for clash in rule(spec, given)]
    return found if in_pipeline else [*found, *stages(spec, given)]


def _hits(clash: Clash, bad: set[str]) -> bool:
    return any(field.partition(".")[0] in bad for field in clash.fields)


def _told(clash: Clash, fields: dict[str, object]) -> FieldError:
    field = clash.fields[0]
    return FieldError(
        field, shown(field, fields.get(field)), clash.en, clash.zh, clash.allowed, clash.code
    )


def _settled(spec: JobSpec, given: frozenset[str]) -> JobSpec:
    """Return the spec with what follows from its other parameters filled in."""
    changes: dict[str, object] = {}
    if not spec.name:
        changes["name"] = default_name(spec)
    if isinstance(spec, DpoSpec) and spec.kl_coef is not None:
        changes |= {"beta": spec.kl_coef, "kl_coef": None}
    if isinstance(spec, GspoSpec) and spec.rewards is not None and "reward_fn_type" not in given:
        changes["reward_fn_type"] = None
    return spec.model_copy(update=changes) if changes else spec


def default_name(spec: JobSpec) -> str:
    """Return a name made from the algorithm and the model."""
    return f"{spec.algorithm} {_short(parse_model_path(spec.model_path))}"[:200]


def _short(source: ModelSource) -> str:
    match source:
        case HubModel(repo=text) | LocalModel(path=text):
            return next((part for part in reversed(text.split("/")) if part.strip(".~ ")), "model")
        case JobModel(job=job):
            return f"job-{job[:8]}"
        case StageModel(name=name):
            return name
