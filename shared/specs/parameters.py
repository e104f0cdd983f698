"""Each parameter described once, read off the JSON schema: for messages, forms, documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

from pydantic import BaseModel

from shared.jobs.reasons import Lang
from shared.specs.base import Algorithm
from shared.specs.hints import GROUPS, Group
from shared.specs.job_spec import SPECS

Kind = Literal["integer", "number", "string", "boolean", "choice", "list", "object", "components"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as users see it; limits are None where there is none."""

    name: str
    kind: Kind
    group: Group
    hint: Mapping[Lang, str]
    unit: Mapping[Lang, str] | None
    required: bool
    nullable: bool
    secret: bool
    default: Any
    choices: tuple[str, ...]
    above: float | None
    minimum: float | None
    below: float | None
    maximum: float | None
    shortest: int | None
    longest: int | None

    def allowed(self) -> str | list[str] | None:
        """Return what may stand here in a form free of language: choices, or an interval."""
        if self.choices:
            return list(self.choices)
        if self.kind == "boolean":
            return ["true", "false"]
        interval = self._interval()
        if interval:
            return interval
        if self.longest is not None:
            unit = "characters" if self.kind == "string" else "entries"
            return f"{self.shortest or 0}..{self.longest} {unit}"
        return None

    def _interval(self) -> str:
        low = _bound(self.minimum, "<=") or _bound(self.above, "<")
        high = _bound(self.maximum, "<=") or _bound(self.below, "<")
        left = f"{low[1]} {low[0]} " if low else ""
        right = f" {high[0]} {high[1]}" if high else ""
        return f"{left}x{right}" if left or right else ""


def _bound(value: float | None, sign: str) -> tuple[str, str] | None:
    return None if value is None else (sign, number_text(value))


def number_text(value: float) -> str:
    """Return a number as people write it: no trailing `.0`, no needless exponent."""
    whole = int(value) if float(value).is_integer() and abs(value) < 1e15 else None
    return str(whole) if whole is not None else f"{value:g}"


@cache
def parameters(algorithm: Algorithm) -> tuple[Parameter, ...]:
    """Return the parameters of an algorithm, by group and then in the order they are declared."""
    found = described(SPECS[algorithm])
    order = {group: place for place, group in enumerate(GROUPS)}
    head = ("algorithm", "name", "description", "tags", "model_path", "train_data_path")
    first = {name: place for place, name in enumerate(head)}
    return tuple(
        sorted(found.values(), key=lambda p: (order[p.group], first.get(p.name, len(head))))
    )


@cache
def described(model: type[BaseModel]) -> dict[str, Parameter]:
    """Return the parameters of one model by name, as declared."""
    schema = model.model_json_schema()
    required = set(schema.get("required", []))
    return {
        name: _parameter(name, entry, name in required)
        for name, entry in schema["properties"].items()
    }


def _parameter(name: str, entry: dict[str, Any], required: bool) -> Parameter:
    branches = [b for b in entry.get("anyOf", [entry]) if b.get("type") != "null"]
    main = next((b for b in branches if b.get("type") == "array"), branches[0])
    kind = _kind(main)
    empty: dict[str, Any] = {"object": {}, "list": []}
    return Parameter(
        name=name,
        kind=kind,
        group=cast("Group", entry["group"]),
        hint=entry["hint"],
        unit=entry["unit"],
        required=required,
        nullable=any(b.get("type") == "null" for b in entry.get("anyOf", [])),
        secret=bool(main.get("writeOnly") or _write_only_values(main)),
        default=entry.get("default", empty.get(kind)),
        choices=tuple(main.get("enum", [main["const"]] if "const" in main else [])),
        above=main.get("exclusiveMinimum"),
        minimum=main.get("minimum"),
        below=main.get("exclusiveMaximum"),
        maximum=main.get("maximum"),
        shortest=main.get("minLength", main.get("minItems")),
        longest=main.get("maxLength", main.get("maxItems", main.get("maxProperties"))),
    )


def _write_only_values(entry: dict[str, Any]) -> bool:
    values = entry.get("additionalProperties")
    return isinstance(values, dict) and bool(values.get("writeOnly"))


def _kind(entry: dict[str, Any]) -> Kind:
    if "enum" in entry or "const" in entry:
        return "choice"
    if entry["type"] == "array":
        return "components" if "$ref" in entry.get("items", {}) else "list"
    return cast("Kind", entry["type"])
