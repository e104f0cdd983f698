"""What verl calls for every completion (`custom_reward_function`): the job's own reward, asked of the reward service.

verl 0.7.0 has no way to leave a completion out: each must have a number. A completion without a verdict is therefore
asked for again, and where nobody can score it after that the attempt ends with the reason `reward_unavailable` and goes on
later from its last save; it is never counted as zero. (With engine trl it would be masked.)
"""

from __future__ import annotations

import json
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from services.gpu_agent.trainers.context import EventWriter, StopFlag, TrainContext
from services.gpu_agent.trainers.entry import read_secrets_at
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.rollouts import Rollout, RolloutPrompt
from shared.runs import SPEC_FILE, RunSpec

SECRETS_PATH: Final = "TRAINYARD_SECRETS_PATH"
"""Variable with the name under which a worker finds the job's secrets; it holds none itself."""
NO_VERDICT: Final = "trainyard: no verdict"
TRIES: Final = 4
FIRST_PAUSE: Final = 1.0
_making = threading.Lock()


class NoVerdict(RuntimeError):
    """Nobody could score a completion; verl ends with it."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: dict[str, Any] | None = None,
    attempt_dir: str = "",
    **_: Any,
) -> dict[str, float]:
    """Return {"score", "acc"} of one completion. Raises NoVerdict. verl calls it in threads."""
    with _making:
        scorer = _scorer(attempt_dir)
    row = json.loads((extra_info or {}).get("row") or "{}")
    prompt = row.get("prompt", "")
    shown = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    rollout = Rollout(RolloutPrompt(0, shown, (), shown, ground_truth, row), solution_str)
    pause, why = FIRST_PAUSE, ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause)
            pause *= 2
        (verdict,) = scorer.score([rollout])
        if verdict.reward is not None:
            measured = scorer.plan.measured(verdict)
            right = measured is not None and measured >= scorer.plan.right_from
            return {"score": verdict.reward, "acc": float(right)}
        why = verdict.error or "unknown"
    raise NoVerdict(f"{NO_VERDICT} on a completion after {TRIES} tries ({why})")


@cache
def _scorer(attempt_dir: str) -> Scorer:
    """Return the one scorer of this worker."""
    folder = Path(attempt_dir)
    spec = RunSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
    path = os.environ.get(SECRETS_PATH)
    secrets = {} if path is None else read_secrets_at(Path(path))
    hidden = tuple(value for value in secrets.values() if value)
    context = TrainContext(spec, EventWriter(Path(os.devnull)), StopFlag(folder), hidden, secrets)
    return Scorer(context, reward_plan(spec.config, spec.model_paths))
