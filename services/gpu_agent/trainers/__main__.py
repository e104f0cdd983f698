"""Cold start of one attempt: `python -m services.gpu_agent.trainers ATTEMPT_DIR [--secrets-fd N]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from services.gpu_agent.trainers.entry import read_secrets, run_attempt


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
    options = parser.parse_args(arguments)
    secrets = {} if options.secrets_fd is None else read_secrets(options.secrets_fd)
    return run_attempt(options.attempt_dir, secrets)


if __name__ == "__main__":
    sys.exit(main())
