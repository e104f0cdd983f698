"""Writes constraints.txt: the exact versions that a fresh environment with every extra resolves to."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "api,scheduler,agent,reward,postgres,smollm2,dev"
HEADER = "# Exact versions of everything; made by `make constraints`, never by hand.\n"


def main() -> None:
    """Resolve in a temporary environment and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "-q", "--upgrade", "pip"], check=True)
        subprocess.run([*pip, "install", "-q", "torch==2.13.0"], check=True)
        subprocess.run([*pip, "install", "-q", f"{ROOT}[{EXTRAS}]"], check=True)
        frozen = subprocess.run(
            [*pip, "freeze", "--all", "--exclude", "trainyard"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    lines = []
    for line in frozen.splitlines():
        name = line.partition(" @ ")[0].partition("==")[0]
        version = "2.13.0" if name == "torch" else line.partition("==")[2]
        if version and name != "setuptools":
            lines.append(f"{name}=={version}")
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
