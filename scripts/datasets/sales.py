"""The sales and general files, put together from the hand-written texts in `text/`."""

from collections.abc import Iterator


def rows(seed: int) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """(file name, rows)."""
    yield from ()
