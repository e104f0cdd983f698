"""Rows of a .csv file with a header line (RFC 4180, comma separated, UTF-8)."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.json_rows import Parsed, bounded_lines, line_too_long
from shared.preflight.json_text import invalid_utf8
from shared.preflight.sources import FIELD, Limits


class _Text:
    """Decoded lines for the csv reader; what is wrong with a line waits in `problems`."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream, self._limits = stream, limits
        self.problems: list[Finding] = []

    def __iter__(self) -> Iterator[str]:
        for number, raw in bounded_lines(self._stream, self._limits.line_bytes):
            place = Place(line=number)
            if raw is None:
                self.problems.append(line_too_long(place, self._limits.line_bytes))
                yield "\n"
                continue
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                self.problems.append(invalid_utf8(place, raw, error.start))
                yield raw.decode("utf-8", errors="replace")

    def taken(self) -> Iterator[Parsed]:
        """The problems met since the last call."""
        for finding in self.problems:
            yield Place(finding.line), finding
        self.problems.clear()


def read(stream: BinaryIO, limits: Limits) -> Iterator[Parsed]:
    """The rows of a CSV stream as text columns; blank lines are skipped."""
    # The csv module keeps one limit for the process; it is only ever raised to ours.
    if csv.field_size_limit() < limits.line_bytes:
        csv.field_size_limit(limits.line_bytes)
    text = _Text(stream, limits)
    reader = csv.reader(text, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield from text.taken()
            yield Place(start), _csv_error(start, error)
            if header is None:
                return
            continue
        broken = bool(text.problems)
        yield from text.taken()
        if cells is None:
            return
        if broken or not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            wrong = _header_failure(header, start, limits)
            if wrong is not None:
                yield Place(start), wrong
                return
            continue
        yield Place(start), _row(header, cells, start)


def _row(header: list[str], cells: list[str], line: int) -> dict[str, object] | Finding:
    if len(cells) != len(header):
        return Finding(
            "cell_count",
            FIELD,
            f'Line {line} has {len(cells)} cells, the header has {len(header)}. Put text with commas or line breaks in "quotes".',
            f"第 {line} 行有 {len(cells)} 个单元格，表头有 {len(header)} 个。含逗号或换行的文本请用英文双引号括起来。",
            line,
            value=str(len(cells)),
            allowed=str(len(header)),
        )
    return dict(zip(header, cells, strict=True))


def _header_failure(header: list[str], line: int, limits: Limits) -> Finding | None:
    if len(header) > limits.columns:
        return Finding(
            "too_many_columns",
            FIELD,
            f"The header has {len(header)} columns; at most {limits.columns} are read.",
            f"表头有 {len(header)} 列，最多读取 {limits.columns} 列。",
            line,
            allowed=f"<= {limits.columns}",
        )
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        return Finding(
            "csv_separator",
            FIELD,
            f"The header {shown(header[0])} is not separated by commas. Export the file with commas.",
            f"表头 {shown(header[0])} 没有用英文逗号分隔。请用逗号分隔重新导出。",
            line,
            value=shown(header[0]),
            allowed=",",
        )
    for at, name in enumerate(header):
        if not name or name in header[:at]:
            en = "has no name" if not name else f"is named {shown(name)} a second time"
            zh = "没有列名" if not name else f"与前面的列重名（{shown(name)}）"
            return Finding(
                "csv_header",
                FIELD,
                f"Column {at + 1} of the header {en}. Give every column its own name.",
                f"表头第 {at + 1} 列{zh}。请给每列起不同的名字。",
                line,
                value=shown(name),
            )
    return None


def _csv_error(line: int, error: csv.Error) -> Finding:
    reason = shown(str(error))
    return Finding(
        "csv_error",
        FIELD,
        f'Line {line} is not valid CSV ({reason}). Check the quotes: a " inside a text is written "".',
        f'第 {line} 行不是合法的 CSV（{reason}）。请检查引号：文本里的 " 要写成 ""。',
        line,
        value=reason,
    )
