"""Specs for machines: fields of a form in one language, and the JSON Schema for OpenAPI."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from shared.jobs.reasons import Lang
from shared.specs.base import Algorithm
from shared.specs.hints import GROUPS
from shared.specs.job_spec import JOB_SPEC
from shared.specs.metrics import METRICS, stop_metrics
from shared.specs.parameters import Parameter, described, parameters
from shared.specs.rewards import RewardComponent


def form_schema(algorithm: Algorithm, lang: Lang) -> dict[str, Any]:
    """Return what a form shows for an algorithm: groups and fields in order, hints in one language."""
    fields = [_field(parameter, lang) for parameter in parameters(algorithm)]
    for field in fields:
        if field["name"] == "rewards":
            field["fields"] = [_field(p, lang) for p in described(RewardComponent).values()]
        if field["name"] == "stop_metric":
            field["choices"] = stop_metrics(algorithm)
    return {
        "algorithm": algorithm,
        "metrics": list(METRICS[algorithm]),
        "groups": [
            {"name": name, "title": title[1 if lang == "zh" else 0]}
            for name, title in GROUPS.items()
            if any(field["group"] == name for field in fields)
        ],
        "fields": fields,
    }


def _field(parameter: Parameter, lang: Lang) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "group": parameter.group,
        "kind": parameter.kind,
        "required": parameter.required,
        "nullable": parameter.nullable,
        "secret": parameter.secret,
        "default": parameter.default,
        "choices": list(parameter.choices),
        "minimum": parameter.minimum,
        "above": parameter.above,
        "maximum": parameter.maximum,
        "below": parameter.below,
        "min_length": parameter.shortest,
        "max_length": parameter.longest,
        "unit": parameter.unit[lang] if parameter.unit else None,
        "hint": parameter.hint[lang],
    }


def job_schema(ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the union; `ref_template` fits it into an OpenAPI document."""
    adapter: TypeAdapter[Any] = JOB_SPEC
    return adapter.json_schema(ref_template=ref_template)
