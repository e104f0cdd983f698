"""Checkpoints are complete or absent, whatever happens and whenever."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_agent import checkpoint_store
from services.gpu_agent.checkpoint_store import Checkpoint


def save(root, step, content=b"weights", kind="full"):
    folder = checkpoint_store.begin(root, step)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "sub").mkdir()
    (folder / "sub" / "x.json").write_text("{}")
    return checkpoint_store.publish(
        folder, step, kind, 1.5, {"loss": 0.5, "bad": None}, {"tokens": 7}
    )


def test_a_published_checkpoint_reads_back(tmp_path):
    saved = save(tmp_path, 20)
    assert saved == checkpoint_store.list_complete(tmp_path)[0]
    assert (saved.step, saved.kind, saved.size_bytes, saved.created_at) == (20, "full", 9, 1.5)
    assert (saved.metrics, saved.trainer) == ({"loss": 0.5, "bad": None}, {"tokens": 7})
    assert checkpoint_store.verify(saved.path) is None
    assert checkpoint_store.manifest_hash(saved.path) == saved.manifest_hash
    assert len(saved.manifest_hash) == 64


def test_newest_first_by_number_not_by_name(tmp_path):
    for step in (0, 9, 100, 20):
        save(tmp_path, step)
    assert [c.step for c in checkpoint_store.list_complete(tmp_path)] == [100, 20, 9, 0]


def test_saving_a_step_again_replaces_it(tmp_path):
    first = save(tmp_path, 5)
    second = save(tmp_path, 5, b"other")
    assert first.manifest_hash != second.manifest_hash
    assert [c.manifest_hash for c in checkpoint_store.list_complete(tmp_path)] == [
        second.manifest_hash
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text('{"version": 1'), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"weight"), "6 bytes"),
    ],
)
def test_a_damaged_checkpoint_is_not_listed(tmp_path, damage, word):
    saved = save(tmp_path, 20)
    damage(saved.path)
    assert checkpoint_store.list_complete(tmp_path) == []
    problem = checkpoint_store.read(saved.path)
    assert isinstance(problem, str)
    assert word in problem
    assert checkpoint_store.manifest_hash(saved.path) is None


def test_a_flipped_byte_is_found_and_the_next_older_is_taken(tmp_path):
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    (newer.path / "model.safetensors").write_bytes(b"weightz")
    assert [c.step for c in checkpoint_store.list_complete(tmp_path)] == [20, 10]
    problem = checkpoint_store.verify(newer.path)
    assert problem is not None
    assert "model.safetensors differs" in problem
    assert checkpoint_store.newest_readable(tmp_path) == older


def test_a_manifest_cannot_point_outside(tmp_path):
    saved = save(tmp_path, 20)
    manifest = json.loads((saved.path / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../etc/passwd"
    (saved.path / "manifest.json").write_text(json.dumps(manifest))
    assert "outside" in str(checkpoint_store.read(saved.path))


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    save(tmp_path, 20)
    checkpoint_store.begin(tmp_path, 40)
    (tmp_path / "note.txt").write_text("x")
    assert len(checkpoint_store.sweep_leftovers(tmp_path)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "note.txt"]
    assert checkpoint_store.sweep_leftovers(tmp_path / "none") == []
    assert checkpoint_store.newest_readable(tmp_path / "none") is None


def test_delete_removes_it(tmp_path):
    checkpoint_store.delete(save(tmp_path, 20))
    assert list(tmp_path.iterdir()) == []


KILL_POINTS = {
    "while hashing": "checkpoint_store._digest_durably = lambda path: die()",
    "before the manifest": "checkpoint_store.json.dumps = lambda *a, **k: die()",
    "after the manifest": "checkpoint_store.fsync_directory = lambda folder: die()",
    "before the rename": "checkpoint_store._show = lambda temporary, final: die()",
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_kill_9_at_any_point_leaves_the_older_checkpoint_alone(tmp_path, point):
    save(tmp_path, 10)
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from services.gpu_agent import checkpoint_store
        def die(): os.kill(os.getpid(), signal.SIGKILL)
        {KILL_POINTS[point]}
        folder = checkpoint_store.begin(Path(sys.argv[1]), 20)
        (folder / "model.safetensors").write_bytes(b"w" * 1000)
        checkpoint_store.publish(folder, 20, "full", 1.0, {{}}, {{}})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        cwd=Path.cwd(),
        timeout=240,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert [c.step for c in checkpoint_store.list_complete(tmp_path)] == [10]
    assert len(checkpoint_store.sweep_leftovers(tmp_path)) == 1
    assert save(tmp_path, 20).step == 20


REPLACES = """
    import itertools, sys
    from pathlib import Path
    from services.gpu_agent import checkpoint_store
    {}
    for n in itertools.count():
        folder = checkpoint_store.begin(Path(sys.argv[1]), 20)
        (folder / "model.safetensors").write_bytes(b"weights")
        checkpoint_store.publish(folder, 20, "full", float(n + 10), {{}}, {{}})
"""


def looks_missing(root, setup="", replacements=100):
    """Look without a pause while another process replaces a checkpoint many times; tell whether it was ever not there."""
    final = save(root, 20).path
    program = textwrap.dedent(REPLACES).format(setup)
    deadline = time.monotonic() + 240
    with subprocess.Popen([sys.executable, "-c", program, str(root)], cwd=Path.cwd()) as writer:
        try:
            while replaced(final) < replacements:
                assert time.monotonic() < deadline
                if not all(final.exists() for _ in range(1000)):
                    return True
        finally:
            writer.kill()
    return False


def replaced(folder):
    """Return how often the checkpoint was replaced."""
    text = manifest_text(folder)
    return json.loads(text)["created_at"] - 10 if text else 0


def manifest_text(folder):
    try:
        return (folder / "manifest.json").read_text()
    except FileNotFoundError:  # between two names
        return ""


def test_replacing_one_of_the_same_step_leaves_no_moment_without_it(tmp_path):
    assert not looks_missing(tmp_path)
    assert checkpoint_store.verify(tmp_path / "checkpoint-20") is None


def test_without_an_exchange_of_names_there_is_such_a_moment(tmp_path):
    """The test above can fail."""
    assert looks_missing(
        tmp_path, "checkpoint_store.exchange = lambda one, other: False", 1_000_000
    )


def test_without_an_exchange_of_names_it_is_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "exchange", lambda one, other: False)
    save(tmp_path, 20, content=b"older!!")
    save(tmp_path, 20, content=b"newer!!")
    assert (tmp_path / "checkpoint-20" / "model.safetensors").read_bytes() == b"newer!!"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-20"]


@given(
    steps=st.sets(st.integers(0, 500), max_size=12),
    limit=st.one_of(st.none(), st.integers(0, 5)),
    best=st.one_of(st.none(), st.integers(0, 500)),
)
def test_first_best_and_last_stay_and_the_newest_of_the_rest(steps, limit, best):
    kept = checkpoint_store.retained(steps, limit, best)
    assert kept <= steps
    if limit is None:
        assert kept == steps
        return
    fixed = {min(steps), max(steps), *({best} & steps)} if steps else set()
    assert fixed <= kept
    others = sorted(steps - fixed)
    assert sorted(kept - fixed) == (others[-limit:] if limit else [])


def test_the_type_that_readers_get(tmp_path):
    assert isinstance(checkpoint_store.read(save(tmp_path, 1).path), Checkpoint)
