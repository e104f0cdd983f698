"""Write the example datasets again: `python -m scripts.datasets.build [FOLDER]` from the project root.

The result is a function of this code, the texts beside it and the seeds, byte for byte.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.datasets import arithmetic, sales

SEED = 20261122


def files() -> Iterator[tuple[str, str]]:
    """(file name, content) of every data file."""
    tables: list[tuple[str, Sequence[Mapping[str, object]]]] = []
    tables += arithmetic.rows(SEED)
    tables += sales.rows(SEED)
    for name, table in tables:
        if name.endswith(".json"):
            yield (
                name,
                "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in table) + "\n]\n",
            )
        else:
            yield name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def main() -> None:
    """Write all files into the folder named on the command line, `datasets` without one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "datasets")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files():
        (folder / name).write_text(content, encoding="utf-8")
        print(f"{name}: {len(content):,} characters")


if __name__ == "__main__":
    main()
