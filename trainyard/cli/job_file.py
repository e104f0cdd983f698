"""Reading a job from a YAML or JSON file and from `key=value` arguments.

A file may come from elsewhere, so it is read as plain data: no tags, no aliases (a few lines of them unfold into
gigabytes), no doubled keys, bounded in size and depth.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

LONGEST = 1 << 20
"""Bytes; the api takes no larger body."""
DEEPEST = 64
_SHOWN = 200
_BRACKETS = re.compile(r"(?:[\[{]\s*)" + f"{{{DEEPEST + 1}}}")


class JobFileInvalid(ValueError):
    """The file is not a mapping of parameters; the message says where and what to do."""


class _Refused(ValueError):
    """What is wrong, as the end of a sentence."""


class _Loader(yaml.SafeLoader):
    """Plain data only. YAML 1.1 reads `1e-5` as a string; learning rates are written like that, so we read a float."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases and deep nesting before anything is built."""
        if self.check_event(yaml.AliasEvent):
            where = _line(self.peek_event())  # type: ignore[no-untyped-call]
            raise _Refused(f"aliases (*name) are not read{where}; write the value out")
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Refused(f"it is nested deeper than {DEEPEST} levels; a job is flat")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse doubled keys, and keys that are no text."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
                raise _Refused(f"a key is no text{_line(key)}; parameters have names")
            if key.value in seen:
                raise _Refused(f"{key.value[:60]!r} stands there twice{_line(key)}; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_TEXT = "tag:yaml.org,2002:str"
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}  # fmt: skip
# A date is a text here: no parameter takes one, and a name may look like one. `<<` is a key like any other.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in _PLAIN]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _no_tag(loader: yaml.SafeLoader, node: yaml.Node) -> NoReturn:
    raise _Refused(f"the tag {str(node.tag)[:60]} is not read{_line(node)}; write plain values")


_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN
} | {None: _no_tag}


def read_job(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the body for `POST /api/v1/jobs/`. Raises JobFileInvalid."""
    try:
        text = _read(path)
    except (OSError, UnicodeDecodeError, _Refused) as error:
        raise JobFileInvalid(f"{path}: cannot be read ({_short(error)}).") from error
    try:
        body = _json(text) if path.suffix == ".json" else _load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = path.suffix.lstrip(".") or "YAML"
        raise JobFileInvalid(f"{path}: not valid {kind}: {_short(error)}.") from error
    if not isinstance(body, dict):
        raise JobFileInvalid(f"{path}: must hold parameters such as `algorithm: sft`, one a line.")
    return body | parse_overrides(overrides)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `{"learning_rate": 1e-05}` for `learning_rate=1e-5`. Raises JobFileInvalid."""
    parsed: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise JobFileInvalid(f"{item[:_SHOWN]!r}: write it as key=value.")
        try:
            parsed[key] = _load(value)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise JobFileInvalid(
                f"{item[:_SHOWN]!r}: the value is not valid YAML: {_short(error)}."
            ) from error
    return parsed


def _read(path: Path) -> str:
    """Read a regular file of bounded size; a pipe or a device would never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _Refused("it is not an ordinary file")
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise _Refused(f"it is larger than {LONGEST >> 20} MiB; put data into a file of its own")
    return data.decode("utf-8-sig")


def _json(text: str) -> Any:
    return _checked(json.loads(text, object_pairs_hook=_once))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Refused(f"{key[:60]!r} stands there twice; keep one")
        made[key] = value
    return made


def _load(text: str) -> Any:
    # The scanner takes the square of the depth to notice.
    if _BRACKETS.search(text):
        raise _Refused(f"it is nested deeper than {DEEPEST} levels; a job is flat")
    return _checked(yaml.load(text, Loader=_Loader))


def _checked(value: Any, depth: int = 0) -> Any:
    """Return the value. Raises _Refused for what no JSON can carry."""
    if depth > DEEPEST:
        raise _Refused(f"it is nested deeper than {DEEPEST} levels; a job is flat")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused(f"{value} is not a finite number")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Refused("it holds half of a surrogate pair; write whole characters") from None
    if isinstance(value, dict):
        for key, item in value.items():
            _checked(key, depth + 1)
            _checked(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _checked(item, depth + 1)
    return value


def _line(place: Any) -> str:
    mark = getattr(place, "start_mark", None)
    return f" (line {mark.line + 1})" if mark is not None else ""


def _short(error: BaseException) -> str:
    """Return what an error says, in one line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
