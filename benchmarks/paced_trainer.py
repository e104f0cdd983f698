"""A trainer whose work is to report: metric lines at a given pace, each with the moment at which it was written.

The job's `description` is its plan, in JSON: `lines`, `per_second` (0: as fast as it can), `values` a line, `burst` lines
written at once, and before the first `preface` log lines of 1 KB and `lead` seconds. Writes what services/gpu_agent/trainers/context.py writes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mean_token_accuracy")


def main() -> int:
    """Run one attempt."""
    attempt = Path(sys.argv[1])
    spec = json.loads((attempt / "spec.json").read_text())
    plan: dict[str, Any] = json.loads(spec["config"]["description"])
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    events = os.open(attempt / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lines, burst, pace = int(plan["lines"]), int(plan.get("burst", 1)), float(plan["per_second"])
    for number in range(int(plan.get("preface", 0))):
        _append(1, f"[INFO] {number} {'.' * 1000}\n".encode())
    time.sleep(float(plan.get("lead", 0.0)))
    began, step = time.monotonic(), 0
    while step < lines and not stopped:
        count = min(burst, lines - step)
        _write(events, step, count, lines, int(plan.get("values", 6)))
        step += count
        if pace:
            time.sleep(max(0.0, began + step / pace - time.monotonic()))
    _result(attempt, step, lines, stopped)
    return 0


def _write(events: int, step: int, count: int, total: int, values: int) -> None:
    """Append `count` metric lines in one write, the progress after them, and a line to the log."""
    text = [_line(metric_record(n, total, values)) for n in range(step + 1, step + count + 1)]
    last = step + count
    text.append(
        _line({"t": time.time(), "type": "progress", "step": last, "total_steps": total, "epoch": last / total, "eta_seconds": None})
    )  # fmt: skip
    _append(events, "".join(text).encode())
    _append(1, f"[INFO] Step {last}/{total}: loss={1.0 / last:.4f}, lr=1e-05\n".encode())


def metric_record(step: int, total: int, values: int) -> dict[str, Any]:
    """Return a metric line of `values` values, one of them the moment by the boot clock."""
    metrics = {name: 1.0 / step + i for i, name in enumerate(NAMES[: values - 1])}
    metrics["written"] = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"t": time.time(), "type": "metric", "step": step, "epoch": step / total, "metrics": metrics}  # fmt: skip


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _append(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _result(attempt: Path, step: int, total: int, stopped: list[int]) -> None:
    cause = None
    stop = attempt / "stop.json"
    if stopped and stop.exists():
        cause = json.loads(stop.read_text())["mode"]
    document = {
        "outcome": "stopped" if stopped else "completed",
        "stop_cause": cause,
        "step": step,
        "total_steps": total,
        "final_metrics": {"loss": 1.0 / max(1, step)},
    }
    part = attempt / "result.part"
    part.write_text(json.dumps(document))
    part.replace(attempt / "result.json")


if __name__ == "__main__":
    sys.exit(main())
