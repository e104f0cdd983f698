"""Rules about the tree that no linter knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = [
    *ROOT.glob("shared/**/*.py"),
    *ROOT.glob("services/**/*.py"),
    *ROOT.glob("trainyard/**/*.py"),
]
LIMIT = 400


def test_no_python_below_datasets() -> None:
    """A module there would shadow Hugging Face `datasets`."""
    assert list((ROOT / "datasets").rglob("*.py")) == []


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_about_one_thing(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LIMIT, f"{path.relative_to(ROOT)} has {lines} lines; split it (limit {LIMIT})"


def test_no_path_of_one_machine_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    pattern = re.compile(r"/(?:w[o]rk/main|r[o]ot/)")
    offenders = [
        name
        for name in listed.split("\0")
        if name
        and not name.endswith((".parquet", ".png"))
        and (ROOT / name).is_file()
        and pattern.search((ROOT / name).read_text(errors="replace"))
    ]
    assert offenders == []


def _compose() -> dict[str, dict[str, object]]:
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services: dict[str, dict[str, object]] = document["services"]
    return services


def test_every_lasting_compose_service_has_a_health_check() -> None:
    one_shot = {name for name, s in _compose().items() if s.get("restart") == "no"}
    missing = [n for n, s in _compose().items() if n not in one_shot and "healthcheck" not in s]
    assert missing == []


def test_compose_has_no_default_secret() -> None:
    """Every secret comes from the environment and its absence stops the start."""
    text = (ROOT / "compose.yaml").read_text()
    for name in re.findall(r"\$\{([A-Z_]*(?:PASSWORD|TOKEN|SECRET|KEY)[A-Z_]*)([^}]*)\}", text):
        assert name[1].startswith(":?"), f"{name[0]} has a default"
    assert not re.search(r"(?i)(password|token):\s*[\"']?[a-z0-9]+[\"']?\s*$", text, re.MULTILINE)
