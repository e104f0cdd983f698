"""Rows of a dataset file, one at a time in bounded memory, each with the place it came from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.preflight import csv_rows, json_rows, parquet_reader
from shared.preflight.finding import Finding, Place
from shared.preflight.sources import Limits, Source, empty_dataset, open_source


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its place and its columns."""

    place: Place
    values: dict[str, object]


def read_rows(path: Path, limits: Limits | None = None) -> Iterator[Row | Finding]:
    """Every row of `path`, or a finding where a row is broken.

    A bad row of .jsonl, .json or .csv does not end the reading; a file that cannot be opened, or goes on in
    an unreadable way, ends with its finding. A file without rows gives `dataset_empty`. Never raises for
    what is in the file.
    """
    bounds = limits or Limits()
    source = open_source(path, bounds)
    if isinstance(source, Finding):
        yield source
        return
    with source.stream:
        yield from read_source(source, bounds)


def read_source(source: Source, limits: Limits) -> Iterator[Row | Finding]:
    """The rows of an open file; the caller closes it."""
    anything = False
    for place, values in _parsed(source, limits):
        anything = True
        yield values if isinstance(values, Finding) else Row(place, values)
    if not anything:
        yield empty_dataset(source.path.name)


def _parsed(source: Source, limits: Limits) -> Iterator[tuple[Place, dict[str, object] | Finding]]:
    match source.format:
        case "jsonl":
            return json_rows.read_lines(source.stream, limits)
        case "json":
            return json_rows.read_array(source.stream, limits)
        case "csv":
            return csv_rows.read(source.stream, limits)
        case "parquet":
            return parquet_reader.read(source, limits)
