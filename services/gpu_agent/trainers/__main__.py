"""Cold start of one attempt: `python -m services.gpu_agent.trainers ATTEMPT_DIR [--secrets-fd N]`; also of each rank."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from services.gpu_agent import shim
from services.gpu_agent.layout import JobFiles
from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.entry import read_secrets, read_secrets_at, run_attempt


def main(arguments: list[str] | None = None) -> int:
    """Run the attempt and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.gpu_agent.trainers")
    parser.add_argument("attempt_dir", type=Path)
    parser.add_argument(
        "--secrets-fd",
        type=int,
        default=None,
        help="descriptor that holds a JSON object of secrets",
    )
    parser.add_argument("--secrets-path", type=Path, default=None, help="the same, for a rank")
    options = parser.parse_args(arguments)
    if ranks.count() > 1:
        return _run_rank(options.attempt_dir, options.secrets_path)
    secrets = {} if options.secrets_fd is None else read_secrets(options.secrets_fd)
    return run_attempt(options.attempt_dir, secrets)


def _run_rank(attempt_dir: Path, secrets_path: Path | None) -> int:
    """Run as one of several ranks; its own lock comes first. It leaves at once: the interpreter's farewell takes seconds."""
    ranks.die_with_parent()
    job = JobFiles(attempt_dir.parents[1])
    try:
        lock = shim.take_locks(
            [str(job.rank_lock(ranks.number()))], f"{job.job} {attempt_dir.name}\n"
        )
    except shim.Locked as error:
        sys.stderr.write(f"[ERROR] Another run still holds {error}\n")
        return shim.EX_LOCKED
    assert lock  # held until the process is gone
    secrets = {} if secrets_path is None else read_secrets_at(secrets_path)
    code = run_attempt(attempt_dir, secrets)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
