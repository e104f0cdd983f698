"""How the command line prints: tables on a terminal, tab-separated lines in a pipe, JSON with `-o json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainyard.client import ApiError, ApiUnreachable

Format = Literal["text", "json"]
OutputOption = Annotated[Format, typer.Option("-o", "--output", help="text, or json for programs.")]
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a model, or anything JSON can hold, on one indented document."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, list):
        value = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in value]
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on a terminal and tab-separated values in a pipe."""
    texts = [["" if v is None else str(v) for v in row] for row in rows]
    if not out.is_terminal:
        for row in (list(columns), *texts):
            sys.stdout.write("\t".join(cell.replace("\t", " ") for cell in row) + "\n")
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in texts:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


@contextmanager
def user_errors(output: Format = "text") -> Iterator[None]:
    """Turn refusals into a sentence on stderr and exit status 1 (2 when nothing answers)."""
    try:
        yield
    except ApiError as error:
        if output == "json":
            sys.stderr.write(json.dumps(error.problem, ensure_ascii=False) + "\n")
        else:
            _print_problem(error)
        raise typer.Exit(1) from None
    except ApiUnreachable as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(2) from None


def _print_problem(error: ApiError) -> None:
    err.print(f"[red]{escape(error.detail)}[/red]")
    if len(error.errors) < 2:
        return
    for entry in error.errors:
        err.print(f"  {escape(str(entry.get('field')))}: {escape(str(entry.get('message')))}")


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print one sentence on stderr and return the exit to raise."""
    err.print(f"[red]{escape(message)}[/red]")
    return typer.Exit(code)
