"""What lies in a checkpoint folder against what is believed to lie there."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.gpu_agent import checkpoint_store
from services.gpu_agent.stocktaking import differences


def save(folder: Path, step: int) -> Path:
    temporary = checkpoint_store.begin(folder, step)
    (temporary / "weights").write_bytes(b"w")
    return checkpoint_store.publish(temporary, step, "lora", 5.0, {"loss": 1.0}, {}).path


def test_nothing_to_say_where_both_agree(tmp_path: Path) -> None:
    save(tmp_path, 4)
    assert differences(tmp_path, [4], 9.0) == []
    assert differences(tmp_path / "none", [], 9.0) == []


def test_what_is_gone_and_what_nobody_knew(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    shutil.rmtree(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-8" / "weights").write_bytes(b"x")
    gone, new = differences(tmp_path, [4], 9.0)
    assert (gone.step, gone.deleted, gone.path) == (4, True, str(tmp_path / "checkpoint-4"))
    assert (new.step, new.deleted, new.kind, new.metrics) == (12, False, "lora", {"loss": 1.0})
    assert new.manifest_hash == checkpoint_store.manifest_hash(tmp_path / "checkpoint-12")
