"""JSON schemas of users over JSON that a model wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from services.reward.core.json_answer import last_object_text

_REFUSED: Final = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef"})
MAX_TEXT: Final = 64 * 1024


def schema_problem(schema: dict[str, Any]) -> str | None:
    """Return what is wrong with a schema, or None; patterns and references are refused, since nothing bounds their time."""
    for key in _keywords(schema):
        if key in _REFUSED:
            return f"{key} is not supported in json_schema"
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)[:200]
    return None


def _keywords(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            if key == "properties" and isinstance(value, dict):
                for inner in value.values():
                    yield from _keywords(inner)
            elif key not in ("enum", "const", "required", "default", "examples"):
                yield from _keywords(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keywords(value)


def fits_schema(text: str, schema: dict[str, Any]) -> bool:
    """Tell whether the last JSON object of a text is valid by a schema."""
    found = last_object_text(text)
    if found is None or len(found) > MAX_TEXT:
        return False
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return False
    return bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(value))


@lru_cache(maxsize=128)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))
