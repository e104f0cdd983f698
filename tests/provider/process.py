"""The mock provider as a process of its own, for tests and benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx2

ROOT = Path(__file__).resolve().parents[2]


class MockProvider:
    """A running mock; ends with the `with` block."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.provider.server"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the mock provider did not start"
        self._client = httpx2.Client(base_url=self.url, timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    def behave(self, **behaviour: Any) -> None:
        self._client.post("/_control", json=behaviour).raise_for_status()

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get("/_stats").json()
        return found
