"""Reading a job from a YAML or JSON file and from `key=value` arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


class JobFileInvalid(ValueError):
    """The file is not a mapping of parameters; the message says where and what to do."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as a string; learning rates are written like that, so we read a float."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_job(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the body for `POST /api/v1/jobs/`. Raises JobFileInvalid."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileInvalid(f"{path}: cannot be read ({error}).") from error
    try:
        body = json.loads(text) if path.suffix == ".json" else _load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise JobFileInvalid(
            f"{path}: not valid {path.suffix.lstrip('.') or 'YAML'}: {error}"
        ) from error
    if not isinstance(body, dict):
        raise JobFileInvalid(f"{path}: must hold parameters such as `algorithm: sft`, one a line.")
    return body | parse_overrides(overrides)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `{"learning_rate": 1e-05}` for `learning_rate=1e-5`. Raises JobFileInvalid."""
    parsed: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise JobFileInvalid(f"{item!r}: write it as key=value.")
        try:
            parsed[key] = _load(value)
        except yaml.YAMLError as error:
            raise JobFileInvalid(f"{item!r}: the value is not valid YAML: {error}") from error
    return parsed


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)
