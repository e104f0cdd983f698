"""schemathesis against the real api: requests made from the OpenAPI document, valid and not, every answer held against it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.target import Target

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
JUDGED_BY_MORE = (
    "POST /api/v1/jobs/",
    "POST /api/v1/jobs:validate",
    "POST /api/v1/hosts/join",
    "GET /api/v1/jobs/",
    "GET /api/v1/rewards/usage",
    "GET /api/v1/jobs/{uuid}/metrics",
    "GET /api/v1/jobs/{uuid}/system",
)
"""Whether these are accepted depends on more than JSON Schema can say: files, a key's checksum, a filter's grammar, from <= to."""


@dataclass(frozen=True)
class Report:
    """What one run came to."""

    cases: int
    sound: bool
    told: str


def fuzz(target: Target, folder: Path, *, seed: int, seconds: int, known: bool) -> Report:
    """Run for about `seconds`; with `known` the paths name what exists, else they are made up too."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "schemathesis.toml"
    config.write_text(_config(target, known), encoding="utf-8")
    command = [
        sys.executable, "-P", "-W", "ignore", "-m", "schemathesis.cli", "--config-file", str(config),
        "run", f"{target.url}/openapi.json", "--seed", str(seed), "--max-time", str(seconds),
        "--phases", "examples,coverage,fuzzing", "--continue-on-failure",
        "--request-timeout", "60", "--max-response-time", "20", "-n", "40", "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=3 * seconds + 400, check=False
    )
    told = done.stdout + done.stderr
    counted = re.search(r"(\d+) generated", told)
    cases = int(counted[1]) if counted else 0
    return Report(cases, done.returncode == 0 and cases > 0, told)


def _config(target: Target, known: bool) -> str:
    lines = []
    if known:
        lines += [
            "[parameters]",
            f'"path.uuid" = "{target.ended}"',
            f'"path.host" = "{target.host}"',
        ]
        lines += ['"path.step" = 3', ""]
    # What the command line says would win over what is said of one operation.
    lines += ["[checks]", "enabled = false", *(f"{check}.enabled = true" for check in CHECKS), ""]
    for name in JUDGED_BY_MORE:
        lines += ["[[operations]]", f'include-name = "{name}"']
        lines += ["checks.positive_data_acceptance.enabled = false", ""]
    if known:
        # The one that is deleted must not be the one that the others ask for.
        lines += ["[[operations]]", 'include-name = "DELETE /api/v1/jobs/{uuid}"']
        lines += [f'parameters = {{ "path.uuid" = "{target.waiting}" }}', ""]
    return "\n".join(lines)
