"""The whole check of one dataset file for one algorithm: every row, counted; the first problems in full."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from shared.preflight.columns import Shape, check_header, check_row, choose_shape, shapes
from shared.preflight.finding import Finding, shown
from shared.preflight.rows import Row, read_source
from shared.preflight.sources import FIELD, Format, Limits, Source, open_source

LISTED = 20
_COLUMNS_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a dataset file holds and what is wrong with it.

    `rows` counts the rows read, good or bad; `complete` is false where `max_rows` ended the reading.
    `errors` and `warnings` list the first 20 of each, the counts are of all. `columns` is in the order met.
    `sha256` is of the whole file, "" where it could not be opened.
    """

    rows: int
    errors: list[Finding]
    error_count: int
    warnings: list[Finding]
    warning_count: int
    bytes: int
    sha256: str
    columns: list[str]
    format: Format | None
    shape: str | None
    complete: bool

    @property
    def ok(self) -> bool:
        """Whether a run may use this file."""
        return self.error_count == 0

    @property
    def conversational(self) -> bool:
        """Whether the rows are conversations, which need a chat template."""
        return self.shape == "messages"


@dataclass(slots=True)
class _Tally:
    about: str
    rows: int = 0
    errors: list[Finding] = dataclasses.field(default_factory=list)
    error_count: int = 0
    warnings: list[Finding] = dataclasses.field(default_factory=list)
    warning_count: int = 0
    columns: dict[str, None] = dataclasses.field(default_factory=dict)
    complete: bool = True

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it while there is room."""
        kept = replace(finding, field=self.about)
        if finding.severity == "error":
            self.error_count += 1
            listed = self.errors
        else:
            self.warning_count += 1
            listed = self.warnings
        if len(listed) < LISTED:
            listed.append(kept)

    def report(
        self, size: int, sha256: str, kind: Format | None, shape: Shape | None
    ) -> DatasetReport:
        """The figures so far as a report."""
        return DatasetReport(
            self.rows,
            self.errors,
            self.error_count,
            self.warnings,
            self.warning_count,
            size,
            sha256,
            [shown(name, 80) for name in self.columns],
            kind,
            shape.name if shape else None,
            self.complete,
        )


def check_dataset(  # the last two are for eval data and tests
    path: Path | str,
    algorithm: str,
    answer_key: str | None = None,
    max_rows: int | None = None,
    *,
    field: str = FIELD,
    limits: Limits | None = None,
) -> DatasetReport:
    """Check the file at `path` (resolve it first: a symbolic link is refused) for `algorithm`.

    Reads the file as a stream in bounded memory, at most `max_rows` rows of it. `field` is the job parameter that
    findings name, such as eval_data_path. Nothing in the file makes it raise; ValueError only for an unknown
    algorithm.
    """
    accepted = shapes(algorithm, answer_key)
    bounds = limits or Limits()
    tally = _Tally(field)
    source = open_source(Path(path), bounds)
    if isinstance(source, Finding):
        tally.add(source)
        return tally.report(0, "", None, None)
    with source.stream:
        digest = hashlib.file_digest(source.stream, "sha256").hexdigest()
        source.stream.seek(0)
        shape = _check_rows(source, bounds, accepted, algorithm, max_rows, tally)
    return tally.report(source.size, digest, source.format, shape)


def _check_rows(  # one private step of check_dataset
    source: Source,
    limits: Limits,
    accepted: tuple[Shape, ...],
    algorithm: str,
    max_rows: int | None,
    tally: _Tally,
) -> Shape | None:
    items = read_source(source, limits)
    before, first = _until_first_row(items, tally)
    if first is None:
        return None
    shape = choose_shape(accepted, first.values)
    if source.format in ("csv", "parquet"):
        missing = check_header(list(first.values), shape, algorithm)
        if missing:
            tally.rows = before
            tally.columns.update(dict.fromkeys(first.values))
            for finding in missing:
                tally.add(finding)
            tally.complete = False
            return shape
    for item in chain((first,), items):
        if max_rows is not None and tally.rows >= max_rows:
            tally.complete = False
            break
        tally.rows += 1
        if isinstance(item, Finding):
            tally.add(item)
        else:
            _check_one(item, shape, accepted, algorithm, tally)
    return shape


def _until_first_row(items: Iterator[Row | Finding], tally: _Tally) -> tuple[int, Row | None]:
    for item in items:
        if isinstance(item, Row):
            return tally.rows, item
        tally.add(item)
        tally.rows += item.code != "dataset_empty"
    return tally.rows, None


def _check_one(
    row: Row, shape: Shape, accepted: tuple[Shape, ...], algorithm: str, tally: _Tally
) -> None:
    if len(tally.columns) < _COLUMNS_REMEMBERED:
        tally.columns.update(dict.fromkeys(row.values))
    own = choose_shape(accepted, row.values)
    if (
        own is not shape
        and set(own.names) <= row.values.keys()
        and not set(shape.names) <= row.values.keys()
    ):
        place = row.place
        tally.add(
            Finding(
                "mixed_shapes",
                FIELD,
                f"{place.en} has {' and '.join(own.names)}, the rows before it {' and '.join(shape.names)}. Use one shape a file.",
                f"{place.zh}使用的是 {' 和 '.join(own.names)}，而前面的数据是 {' 和 '.join(shape.names)}。一个文件只能使用一种结构。",
                place.line,
                place.row,
                own.names[0],
                allowed=", ".join(shape.names),
            )
        )
        return
    for finding in check_row(row.values, shape, algorithm, row.place):
        tally.add(finding)
