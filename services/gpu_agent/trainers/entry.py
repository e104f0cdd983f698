"""One attempt from `spec.json` to `result.json`: picks the trainer, and turns whatever happens into a result."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.gpu_agent.trainers import preload, ranks
from services.gpu_agent.trainers.context import (
    EventWriter,
    StopAsked,
    StopFlag,
    TrainContext,
    remove_secrets,
    split_nonfinite,
    write_line,
)
from services.gpu_agent.trainers.failures import TrainingFailure, classify, no_room
from shared.disk.levels import shortage
from shared.disk.volumes import volume_of
from shared.jobs.reasons import REASONS, Reason
from shared.runs import EVENTS_FILE, SPEC_FILE, RunResult, RunSpec, write_atomic_json

TRAINERS: dict[str, str] = {
    "sft": "services.gpu_agent.trainers.sft",
    "dpo": "services.gpu_agent.trainers.dpo",
    "reward_model": "services.gpu_agent.trainers.reward_model",
    "ppo": "services.gpu_agent.trainers.ppo",
    "grpo": "services.gpu_agent.trainers.grpo",
    "gspo": "services.gpu_agent.trainers.gspo",
}
"""Module of each algorithm; it has `run(ctx) -> None`."""

VERL: dict[str, str] = dict.fromkeys(("grpo", "ppo"), "services.gpu_agent.trainers.verl_run")
"""The same where the engine is verl."""

_TRACEBACK_CHARS = 8000


def run_attempt(attempt_dir: Path, secrets: Mapping[str, str]) -> int:
    """Train as `spec.json` in `attempt_dir` says and write `result.json`; 0 unless the run failed. Never raises."""
    hidden = tuple(value for value in secrets.values() if value)
    context: TrainContext | None = None
    flag = StopFlag(attempt_dir)
    try:
        flag.install()
        spec = RunSpec.model_validate_json((attempt_dir / SPEC_FILE).read_bytes())
        context = TrainContext(spec, EventWriter(attempt_dir / EVENTS_FILE), flag, hidden, secrets)
        with _environment(secrets), _process_setup(hidden):
            _train(context)
            ranks.leave()
        result = _ended(context)
    except StopAsked:
        result = _ended(context, stopped=True)
    except BaseException as error:  # noqa: BLE001 - the one place where every failure becomes a result
        result = _failed(error, context, hidden)
    finally:
        flag.restore()
    if context is not None:
        context.events.close()
    return _report(attempt_dir, result)


def _train(context: TrainContext) -> None:
    spec = context.spec
    engine = spec.config.get("engine", "trl")
    if engine != "trl" and (engine != "verl" or spec.algorithm not in VERL):
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"engine {engine!r} cannot train {spec.algorithm}; set engine to 'trl'.",
            f"engine {engine!r} 不支持 {spec.algorithm}；请设为 'trl'。",
        )
    module = (VERL if engine == "verl" else TRAINERS).get(spec.algorithm)
    if module is None:
        known = ", ".join(TRAINERS)
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"This agent has no trainer for algorithm {spec.algorithm!r}; it has: {known}.",
            f"该 agent 没有算法 {spec.algorithm!r} 的训练器；现有：{known}。",
        )
    started = time.monotonic()
    preload.set_import_environment()
    trainer = importlib.import_module(module)
    context.info(
        f"Trainer ready in {time.monotonic() - started:.1f} s ({spec.algorithm}, {spec.device})"
    )
    trainer.run(context)


def _ended(context: TrainContext | None, *, stopped: bool = False) -> RunResult:
    if context is None:
        return RunResult(outcome="stopped")
    unfinished = context.step < context.total_steps or context.total_steps == 0
    cause = context.stop_cause
    if cause == "time_limit" and unfinished:
        text = REASONS[Reason.TIME_LIMIT]
        return _result(
            context, outcome="failed", reason=Reason.TIME_LIMIT, message=text.en, message_zh=text.zh
        )
    if cause == "reward_unavailable" and unfinished:
        text = REASONS[Reason.REWARD_UNAVAILABLE]
        message = context.stop_message or (text.en, text.zh)
        return _result(
            context,
            outcome="failed",
            reason=Reason.REWARD_UNAVAILABLE,
            message=message[0],
            message_zh=message[1],
        )
    if cause is None and (stopped or context.should_stop()) and unfinished:
        context.stop_cause = context.stop.cause()
        return _result(context, outcome="stopped")
    reason = {"stop_metric": Reason.TARGET_REACHED, "early_stopping": Reason.EARLY_STOPPED}.get(
        cause or ""
    )
    return _result(context, outcome="completed", reason=reason)


def _failed(
    error: BaseException, context: TrainContext | None, hidden: tuple[str, ...]
) -> RunResult:
    verdict = classify(error)
    if verdict.reason is Reason.DISK_FULL and verdict.shortage is None and context is not None:
        verdict = classify(_unwritten(context) or error)
    trace = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
    message = remove_secrets(verdict.message, hidden)
    fields = {
        "outcome": "failed",
        "reason": verdict.reason,
        "message": message,
        "message_zh": remove_secrets(verdict.message_zh, hidden) if verdict.message_zh else None,
        "shortage": verdict.shortage,
        "error_type": type(error).__name__,
        "traceback": remove_secrets(trace, hidden),
    }
    return RunResult.model_validate(fields) if context is None else _result(context, **fields)


def _unwritten(context: TrainContext) -> TrainingFailure | None:
    """Return what could not be written, for a run whose own files met a full disk."""
    volume = volume_of(context.spec.attempt_dir)
    if volume is None:
        return None
    return no_room(shortage(volume), "events and log of the run in", "运行的事件与日志目录")


def _result(context: TrainContext, **fields: object) -> RunResult:
    return RunResult.model_validate(
        {
            "stop_cause": context.stop_cause,
            "step": context.step,
            "total_steps": context.total_steps,
            "final_metrics": split_nonfinite(context.latest)[0],
            "last_checkpoint": context.last_checkpoint,
            **fields,
        }
    )


def _report(attempt_dir: Path, result: RunResult) -> int:
    if result.outcome == "failed":
        if result.traceback and result.reason is Reason.CODE_ERROR:
            sys.stdout.flush()
            write_line("ERROR", result.traceback.rstrip())
        write_line("ERROR", _error_line(result))
    else:
        cause = f" ({result.stop_cause})" if result.stop_cause else ""
        write_line(
            "INFO", f"Run {result.outcome}{cause} at step {result.step}/{result.total_steps}"
        )
    try:
        name = ranks.result_name(ranks.number(), ranks.count())
        write_atomic_json(attempt_dir / name, result)
    except (OSError, ValueError) as error:
        write_line("ERROR", f"The result could not be written: {error}")
        return 1
    return 1 if result.outcome == "failed" else 0


def _error_line(result: RunResult) -> str:
    """What went wrong, in the words of the library where it has some, and what to do about it."""
    text = REASONS[result.reason or Reason.CODE_ERROR]
    said = result.message or text.en
    if result.reason is Reason.CUDA_OOM:
        said = f"CUDA out of memory ({said})"
    elif said != text.en:
        said = f"{text.en} {said}"
    return f"{said.rstrip('.')}. {text.hint_en}".rstrip()


@contextmanager
def _environment(secrets: Mapping[str, str]) -> Iterator[None]:
    """Put the Hugging Face token where its libraries look for it, inside this process alone."""
    token = secrets.get("HF_TOKEN")
    before = os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token:
            os.environ.pop("HF_TOKEN", None)
            if before is not None:
                os.environ["HF_TOKEN"] = before


@contextmanager
def _process_setup(hidden: tuple[str, ...]) -> Iterator[None]:
    """Stack dumps on SIGUSR1, library warnings as `[WARNING]` lines on stdout, for as long as the run lasts."""
    faulthandler.register(signal.SIGUSR1, file=1, all_threads=True)
    handler = _LineHandler(hidden)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):  # for those who write libraries
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        faulthandler.unregister(signal.SIGUSR1)


class _LineHandler(logging.Handler):
    """Writes library records in the log's own form, without the job's secrets."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self._hidden = hidden

    def emit(self, record: logging.LogRecord) -> None:
        level = (
            "ERROR"
            if record.levelno >= logging.ERROR
            else ("WARNING" if record.levelno >= logging.WARNING else "INFO")
        )
        write_line(level, remove_secrets(" ".join(record.getMessage().split()), self._hidden))


def read_secrets(descriptor: int) -> dict[str, str]:
    """Read the job's secrets, one JSON object, from an inherited descriptor, and close it. Raises ValueError, OSError."""
    with os.fdopen(descriptor, "rb") as file:
        return _secrets(json.load(file))


def read_secrets_at(path: Path) -> dict[str, str]:
    """Read them from a descriptor of the launcher, opened anew, so that each rank reads from the start."""
    with path.open("rb") as file:
        return _secrets(json.load(file))


def _secrets(data: object) -> dict[str, str]:
    if not isinstance(data, dict):
        raise ValueError("secrets must be one JSON object")
    return {str(name): str(value) for name, value in data.items()}
