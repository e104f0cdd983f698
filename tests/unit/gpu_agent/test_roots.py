"""Which folders jobs may read on a host: any on a loopback stack, the named ones on a host that joined beyond it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.gpu_agent.settings import AgentSettings


@pytest.mark.parametrize(("restrict", "free"), [(True, False), (False, True), (None, True)])
def test_a_host_that_joined_beyond_loopback_is_restricted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restrict: bool | None, free: bool
) -> None:
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path))
    monkeypatch.delenv("TRAINYARD_DATA_ROOTS", raising=False)
    host = {"host_id": "h0123456789ab"} | ({} if restrict is None else {"restrict_paths": restrict})
    path = tmp_path / "agents" / "local" / "host.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(host))
    assert (AgentSettings().roots is None) is free
    monkeypatch.setenv("TRAINYARD_DATA_ROOTS", str(tmp_path / "data"))
    assert AgentSettings().roots == (tmp_path / "data",)
