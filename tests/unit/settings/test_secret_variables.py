"""What a process may hand on to those that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shared.settings import SECRET_VARIABLES, forget_secrets, without_secrets


def test_an_environment_without_secrets_keeps_the_rest() -> None:
    env = dict.fromkeys(SECRET_VARIABLES, "secret") | {"PATH": "/bin", "TRAINYARD_HOME": "/h"}
    assert without_secrets(env) == {"PATH": "/bin", "TRAINYARD_HOME": "/h"}
    kept = without_secrets(env, keep=("TRAINYARD_DATABASE_URL",))
    assert set(kept) - {"PATH", "TRAINYARD_HOME"} == {"TRAINYARD_DATABASE_URL"}


def test_what_is_forgotten_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, "CANARY-inherited")
    forget_secrets()
    child = subprocess.run(
        [sys.executable, "-I", "-c", "import os; print(dict(os.environ))"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CANARY" not in child.stdout
    assert not set(SECRET_VARIABLES) & set(os.environ)
