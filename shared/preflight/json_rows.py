"""Rows of .jsonl (an object a line) and .json (one array), read in pieces of bounded size."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from shared.preflight.finding import Finding, Place
from shared.preflight.json_text import parse_object
from shared.preflight.sources import FIELD, Limits

Parsed = tuple[Place, dict[str, object] | Finding]

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_CHUNK = 1 << 16
_OUTSIDE = re.compile(rb'[\[\]{}",\n]')
_INSIDE = re.compile(rb'["\\\n]')


def read_lines(stream: BinaryIO, limits: Limits) -> Iterator[Parsed]:
    """The objects of a .jsonl stream; blank lines, a BOM and CRLF are accepted."""
    for number, raw in bounded_lines(stream, limits.line_bytes):
        place = Place(line=number)
        if raw is None:
            yield place, line_too_long(place, limits.line_bytes)
        elif raw.strip(_SPACE):
            yield place, parse_object(raw.rstrip(b"\r\n"), place, limits.depth)


def bounded_lines(stream: BinaryIO, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, never holding more than `most` bytes; None for a longer one."""
    number = 0
    while raw := stream.readline(most + 2):
        number += 1
        if number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        if len(raw.rstrip(b"\r\n")) <= most and (raw.endswith(b"\n") or len(raw) < most + 2):
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(_CHUNK)
        yield number, None


def line_too_long(place: Place, most: int) -> Finding:
    """The finding for a line or an element beyond the bound."""
    allowed = f"{most / (1 << 20):g} MiB" if most >= 1 << 20 else f"{most} bytes"
    return Finding(
        "line_too_long",
        FIELD,
        f"{place.en} is longer than {allowed}. Split the text, or check that a line break is not missing.",
        f"{place.zh}超过 {allowed}。请拆分文本，或检查是否缺少换行。",
        place.line,
        place.row,
        allowed=f"<= {allowed}",
    )


class _Broken(Exception):  # never leaves this module
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.code)
        self.finding = finding


class _ArraySplitter:
    """Cuts one JSON array into the bytes of its elements without parsing them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._element = bytearray()
        self._depth = 0  # 1 = between the elements of the array
        self._in_string = False
        self._skip = False  # the next byte is escaped
        self._closed = False
        self._after_comma = False
        self.line = 1
        self.started_at = 1
        self.count = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Complete elements in `chunk`, each with the line it begins on."""
        position = 0
        while position < len(chunk):
            if self._skip:
                self._take(chunk, position, position + 1)
                self._skip = False
                position += 1
                continue
            match = (_INSIDE if self._in_string else _OUTSIDE).search(chunk, position)
            end = match.start() if match else len(chunk)
            self._take(chunk, position, end)
            if match is None:
                return
            position = end + 1
            yield from self._mark(chunk, end)

    def finish(self) -> tuple[int, bytes] | None:
        """At the end of the file: the element that was never closed, if there is one."""
        if self._closed:
            return None
        if self._element.strip(_SPACE):
            return self.started_at, bytes(self._element)
        if self._depth == 0:
            return None
        raise _Broken(
            _syntax(self.line, "the array is not closed: a ] is missing", "数组没有结束，缺少 ]")
        )

    def _take(self, chunk: bytes, start: int, end: int) -> None:
        if start >= end:
            return
        piece = chunk[start:end]
        if self._depth == 0:
            self._outside(piece)
            return
        if not self._element:
            piece = piece.lstrip(_SPACE)
            if not piece:
                return
            self.started_at = self.line
        self._element += piece
        if len(self._element) > self._most:
            raise _Broken(line_too_long(Place(self.started_at, self.count + 1), self._most))

    def _outside(self, piece: bytes) -> None:
        if not piece.strip(_SPACE):
            return
        if self._closed:
            raise _Broken(
                _syntax(
                    self.line, "there is text behind the end of the array", "数组结束之后还有内容"
                )
            )
        raise _Broken(_not_array(self.line))

    def _mark(self, chunk: bytes, at: int) -> Iterator[tuple[int, bytes]]:
        mark = chunk[at : at + 1]
        if mark == b"\n":
            if self._element:
                self._take(chunk, at, at + 1)
            self.line += 1
        elif mark == b"\\":
            self._take(chunk, at, at + 1)
            self._skip = True
        elif mark == b'"':
            self._take(chunk, at, at + 1)
            self._in_string = self._depth > 0 and not self._in_string
        elif mark in (b"[", b"{"):
            self._open(chunk, at)
        elif mark == b"," and self._depth == 1:
            yield self._cut()
            self._after_comma = True
        elif mark == b",":
            self._take(chunk, at, at + 1)
        else:
            yield from self._close(chunk, at)

    def _open(self, chunk: bytes, at: int) -> None:
        if self._depth == 0:
            if self._closed or chunk[at : at + 1] != b"[":
                self._outside(chunk[at : at + 1])
            self._depth = 1
            return
        self._take(chunk, at, at + 1)
        self._depth += 1

    def _close(self, chunk: bytes, at: int) -> Iterator[tuple[int, bytes]]:
        if self._depth != 1:
            self._take(chunk, at, at + 1)
            self._depth = max(0, self._depth - 1)
            return
        if chunk[at : at + 1] == b"}":
            raise _Broken(_syntax(self.line, "a } closes nothing here", "此处的 } 没有对应的 {"))
        if self._element or self._after_comma:
            yield self._cut()
        self._depth, self._closed = 0, True

    def _cut(self) -> tuple[int, bytes]:
        if not self._element:
            raise _Broken(
                _syntax(self.line, "an element is missing beside a comma", "逗号旁边缺少元素")
            )
        element = bytes(self._element)
        self._element.clear()
        self._after_comma = False
        self.count += 1
        return self.started_at, element


def read_array(stream: BinaryIO, limits: Limits) -> Iterator[Parsed]:
    """The objects of one JSON array; broken brackets end the reading with a finding."""
    splitter = _ArraySplitter(limits.line_bytes)
    row = 0
    try:
        for chunk in _chunks(stream):
            for line, element in splitter.feed(chunk):
                row += 1
                place = Place(line, row)
                yield place, parse_object(element, place, limits.depth)
        rest = splitter.finish()
    except _Broken as broken:
        yield Place(broken.finding.line), broken.finding
        return
    if rest is not None:
        yield Place(rest[0], row + 1), _unfinished(rest[0], row + 1, rest[1], limits.depth)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    first = True
    while chunk := stream.read(_CHUNK):
        yield chunk.removeprefix(_BOM) if first else chunk
        first = False


def _unfinished(line: int, row: int, element: bytes, depth: int) -> Finding:
    parsed = parse_object(element, Place(line, row), depth)
    if isinstance(parsed, Finding):
        return parsed
    return _syntax(line, "the array is not closed: a ] is missing", "数组没有结束，缺少 ]")


def _syntax(line: int, en: str, zh: str) -> Finding:
    return Finding("json_error", FIELD, f"Line {line}: {en}.", f"第 {line} 行：{zh}。", line)


def _not_array(line: int) -> Finding:
    return Finding(
        "json_not_array",
        FIELD,
        'A .json dataset is one array: [{"prompt": "…"}, …]. Name a file with one object a line .jsonl.',
        '.json 数据集应为一个数组：[{"prompt": "…"}, …]。如果是每行一个对象，请使用 .jsonl 扩展名。',
        line,
        allowed="[{…}, …] or .jsonl",
    )
