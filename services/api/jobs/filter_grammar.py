"""The filter language of lists: a subset of AIP-160, parsed into plain data. OR binds tighter than AND, as there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from shared.errors import FieldProblem, TrainyardError, invalid

Operator = Literal["=", "!=", "<", "<=", ">", ">=", ":"]
LONGEST = 1000
RESTRICTIONS_AT_MOST = 50
DEPTH_AT_MOST = 16

_TOKEN = re.compile(
    r"""\s*(?:(?P<open>\()|(?P<close>\))|(?P<op><=|>=|!=|=|<|>|:)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<word>[^\s()"'<>=!:]+(?::[^\s()"'<>=!:]+)*))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Restriction:
    """`field operator value`; `quoted` tells "1" from 1."""

    field: str
    operator: Operator
    value: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    part: Node


@dataclass(frozen=True, slots=True)
class Every:
    """Every part must hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One part must hold."""

    parts: tuple[Node, ...]


Node = Restriction | Not | Every | Either


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse_filter(text: str) -> Node:
    """Return the tree. Raises TrainyardError 422 `filter_invalid` with the column of the mistake."""
    if len(text) > LONGEST:
        raise filter_problem(f"is longer than {LONGEST} characters", f"超过 {LONGEST} 个字符")
    tokens = _tokens(text)
    if sum(token.kind == "op" for token in tokens) > RESTRICTIONS_AT_MOST:
        raise filter_problem(
            f"has more than {RESTRICTIONS_AT_MOST} conditions",
            f"条件超过 {RESTRICTIONS_AT_MOST} 个",
        )
    parser = _Parser(tokens, len(text))
    tree = parser.every(0)
    parser.end()
    return tree


def filter_problem(en: str, zh: str, allowed: object = None) -> TrainyardError:
    """Return the 422 for a filter; `en` and `zh` follow the word "filter"."""
    return invalid(
        [FieldProblem("filter", None, f"filter {en}.", f"filter {zh}。", allowed, "filter_invalid")]
    )


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _at(at, "cannot be read", "无法解析")
        # A word ends before the first ':' of `tags:x`; one inside a value, as in a time, belongs to it.
        token = _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        if token.kind == "word" and ":" in token.text and not _after_operator(found):
            head = token.text.partition(":")[0]
            token = _Token("word", head, token.at)
            found.append(token)
            at = token.at + len(head)
            continue
        found.append(token)
        at = match.end()
    return found


def _after_operator(found: list[_Token]) -> bool:
    return bool(found) and found[-1].kind == "op"


def _at(column: int, en: str, zh: str) -> TrainyardError:
    return filter_problem(
        f'{en} at column {column + 1}; write for example status=RUNNING AND config.learning_rate>1e-5 AND tags:"night"',
        f'在第 {column + 1} 列{zh}；示例：status=RUNNING AND config.learning_rate>1e-5 AND tags:"night"',
    )


class _Parser:
    def __init__(self, tokens: list[_Token], length: int) -> None:
        self._tokens = tokens
        self._length = length
        self._place = 0

    def every(self, depth: int) -> Node:
        """expression = factor {AND factor}."""
        if depth > DEPTH_AT_MOST:
            raise filter_problem("has too many brackets", "括号嵌套过深")
        parts = [self._either(depth)]
        while self._word("AND"):
            parts.append(self._either(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def end(self) -> None:
        if self._place < len(self._tokens):
            raise self._wrong("AND, OR or the end is expected", "此处应为 AND、OR 或结尾")

    def _either(self, depth: int) -> Node:
        parts = [self._term(depth)]
        while self._word("OR"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _term(self, depth: int) -> Node:
        if self._word("NOT"):
            return Not(self._term(depth + 1) if depth < DEPTH_AT_MOST else self.every(depth + 1))
        token = self._next()
        if token.kind == "open":
            inside = self.every(depth + 1)
            if self._next().kind != "close":
                self._place -= 1
                raise self._wrong("a closing bracket is missing", "缺少右括号")
            return inside
        if token.kind == "word" and token.text.startswith("-"):
            return Not(self._restriction(_Token("word", token.text[1:], token.at)))
        return self._restriction(token)

    def _restriction(self, field: _Token) -> Restriction:
        if field.kind != "word" or not field.text:
            self._place -= 1
            raise self._wrong("a field name is expected", "此处应为字段名")
        operator = self._next()
        if operator.kind != "op":
            self._place -= 1
            raise self._wrong("one of = != < <= > >= : is expected", "此处应为 = != < <= > >= :")
        value = self._next()
        if value.kind == "string":
            text = re.sub(r"\\(.)", r"\1", value.text[1:-1])
            return Restriction(field.text, operator.text, text, quoted=True)  # type: ignore[arg-type]
        if value.kind != "word":
            self._place -= 1
            raise self._wrong("a value is expected", "此处应为值")
        return Restriction(field.text, operator.text, value.text)  # type: ignore[arg-type]

    def _word(self, word: str) -> bool:
        here = self._tokens[self._place] if self._place < len(self._tokens) else None
        if here is not None and here.kind == "word" and here.text == word:
            self._place += 1
            return True
        return False

    def _next(self) -> _Token:
        if self._place >= len(self._tokens):
            raise _at(self._length, "ends too early", "过早结束")
        self._place += 1
        return self._tokens[self._place - 1]

    def _wrong(self, en: str, zh: str) -> TrainyardError:
        at = self._tokens[self._place].at if self._place < len(self._tokens) else self._length
        return _at(at, f"is wrong: {en}", f"有误：{zh}")
