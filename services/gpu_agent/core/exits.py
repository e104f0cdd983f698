"""How an attempt ended, from what it left: the trainer's result, the shim's exit record, or nothing at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict

from shared.disk.levels import Shortage, Volume, fullest, shortage
from shared.jobs.reasons import REASONS, Reason
from shared.runs import Outcome, RunResult

EX_LOCKED = 75
"""The shim found a lock held (sysexits EX_TEMPFAIL)."""
EX_USED = 76
"""The shim found that the attempt had been used."""
_SIGKILL = 9
_STOP_SIGNALS = {2: "SIGINT", 9: "SIGKILL", 15: "SIGTERM"}
_CRASH_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV", 31: "SIGSYS"}
_MESSAGE_CHARS = 600

_BY_TEXT: tuple[tuple[re.Pattern[str], Reason], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"CUDA out of memory|CUDA error: out of memory|torch\.OutOfMemoryError", Reason.CUDA_OOM),
        (
            r"DefaultCPUAllocator: (can't|not enough)|MemoryError|Cannot allocate memory",
            Reason.HOST_OOM,
        ),
        (r"No space left on device|Disk quota exceeded", Reason.DISK_FULL),
        (r"probability tensor contains either `inf`, `nan`", Reason.NAN_LOSS),
        (
            r"no CUDA GPUs are available|NVIDIA driver|CUDA error: (uncorrectable ECC|device-side assert|unspecified launch)",
            Reason.GPU_UNUSABLE,
        ),
        (r"SafetensorError|does not appear to have a file named", Reason.MODEL_INVALID),
        (r"DatasetGenerationError|DatasetNotFoundError", Reason.DATASET_INVALID),
        (r"ConnectionError|ConnectTimeout|MaxRetryError|LocalEntryNotFoundError", Reason.NETWORK),
    )
)
_EXCEPTION_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning|Failure)\b")


class ExitRecord(BaseModel):
    """`exit.json`, by the shim."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    exit_code: int | None = None
    signal: int | None = None
    oom_kill: bool = False
    time: float = 0.0
    leftovers: int = 0
    lease_lost: bool = False
    """The shim stopped the trainer because the lease had run out."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about the end of an attempt."""

    result: RunResult | None = None
    exit: ExitRecord | None = None
    stop_mode: str | None = None
    """Someone had asked it to stop."""
    stalled: bool = False
    rebooted: bool = False
    """The host's boot id is not the one at the start."""
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the scheduler and the user are told. Without a message the reason's own sentence says it all."""

    outcome: Outcome
    reason: Reason | None = None
    message_en: str = ""
    message_zh: str = ""
    stop_cause: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    step: int | None = None
    total_steps: int | None = None
    final_metrics: dict[str, float | None] = field(default_factory=dict)
    shortage: Shortage | None = None
    """What lacked room, with the reason `disk_full`."""


def classify(evidence: Evidence) -> Ending:
    """Return the verdict; total: whatever is missing, there is one."""
    result, left = evidence.result, evidence.exit
    if result is not None and result.outcome == "completed":
        return _from_result(result, left)
    if evidence.stalled:
        return _ended(evidence, "failed", Reason.STALLED, result)
    if result is not None:
        return _from_result(result, left, evidence.stop_mode)
    if left is None:
        return _without_a_word(evidence)
    if left.lease_lost:
        return _ended(evidence, "stopped", None, cause="requeue")
    if left.signal is not None:
        return _by_signal(evidence, left)
    return _by_code(evidence, left)


def _from_result(
    result: RunResult, left: ExitRecord | None, stop_mode: str | None = None
) -> Ending:
    cause = result.stop_cause or (stop_mode if result.outcome == "stopped" else None)
    return Ending(
        outcome=result.outcome,
        reason=result.reason,
        message_en=result.message or "",
        message_zh=result.message_zh or result.message or "",
        stop_cause=cause,
        exit_code=left.exit_code if left else None,
        signal=left.signal if left else None,
        step=result.step,
        total_steps=result.total_steps or None,
        final_metrics=result.final_metrics,
        shortage=result.shortage,
    )


def with_shortage(ending: Ending, volumes: tuple[Volume, ...]) -> Ending:
    """Return the ending, with path, need and have where the disk was full and the run could not say so itself."""
    worst = fullest(volumes)
    if ending.reason is not Reason.DISK_FULL or ending.shortage is not None or worst is None:
        return ending
    short = shortage(worst)
    return replace(
        ending,
        shortage=short,
        message_en=f"{REASONS[Reason.DISK_FULL].en} {short.en}.",
        message_zh=f"{REASONS[Reason.DISK_FULL].zh}{short.zh}。",
    )


def _without_a_word(evidence: Evidence) -> Ending:
    if evidence.rebooted:
        return _ended(evidence, "failed", Reason.HOST_REBOOTED)
    if evidence.stop_mode is not None:
        return _stopped_hard(evidence)
    return _ended(evidence, "failed", _by_log(evidence.log_tail) or Reason.EXIT_UNKNOWN)


def _by_signal(evidence: Evidence, left: ExitRecord) -> Ending:
    if left.oom_kill and left.signal == _SIGKILL:
        return _ended(evidence, "failed", Reason.HOST_OOM)
    if left.signal in _STOP_SIGNALS:
        if evidence.stop_mode is not None:
            return _stopped_hard(evidence)
        name = _STOP_SIGNALS[left.signal]
        return _ended(
            evidence,
            "failed",
            Reason.KILLED,
            en=f"It was ended by {name} from outside.",
            zh=f"进程被外部的 {name} 终止。",
        )
    reason = _by_log(evidence.log_tail) or Reason.CODE_ERROR
    name = _CRASH_SIGNALS.get(left.signal or 0, f"signal {left.signal}")
    last = last_error_line(evidence.log_tail)
    return _ended(
        evidence,
        "failed",
        reason,
        en=f"The trainer crashed ({name}). {last}".strip(),
        zh=f"训练进程崩溃（{name}）。{last}".strip(),
    )


def _by_code(evidence: Evidence, left: ExitRecord) -> Ending:
    code = left.exit_code
    if code in (EX_LOCKED, EX_USED):
        return _ended(evidence, "failed", Reason.START_FAILED)
    if code == 0:
        return _ended(
            evidence,
            "failed",
            Reason.EXIT_UNKNOWN,
            en="The trainer ended without an error and without a result.",
            zh="训练进程正常退出，但没有留下结果。",
        )
    last = last_error_line(evidence.log_tail)
    return _ended(
        evidence,
        "failed",
        _by_log(evidence.log_tail) or Reason.CODE_ERROR,
        en=last or f"The trainer ended with code {code}.",
        zh=last or f"训练进程以代码 {code} 退出。",
    )


def _stopped_hard(evidence: Evidence) -> Ending:
    return _ended(
        evidence,
        "stopped",
        None,
        cause=evidence.stop_mode,
        en="It did not stop in time and was killed; the newest complete checkpoint is kept.",
        zh="未在时限内停止，已被强制结束；最近的完整检查点已保留。",
    )


def _ended(  # the fields of an ending, with what the evidence knows filled in
    evidence: Evidence,
    outcome: Outcome,
    reason: Reason | None,
    result: RunResult | None = None,
    *,
    cause: str | None = None,
    en: str = "",
    zh: str = "",
) -> Ending:
    if reason is not None and not en:
        text = REASONS[reason]
        en, zh = text.en, text.zh
        last = last_error_line(evidence.log_tail)
        if last and reason not in (Reason.STALLED, Reason.HOST_REBOOTED):
            en, zh = f"{en} {last}", f"{zh} {last}"
    return Ending(
        outcome=outcome,
        reason=reason,
        message_en=en,
        message_zh=zh,
        stop_cause=cause,
        exit_code=evidence.exit.exit_code if evidence.exit else None,
        signal=evidence.exit.signal if evidence.exit else None,
        step=result.step if result else None,
        total_steps=(result.total_steps or None) if result else None,
    )


def _by_log(tail: str) -> Reason | None:
    return next((reason for pattern, reason in _BY_TEXT if pattern.search(tail)), None)


def last_error_line(tail: str) -> str:
    """Return the last line that reads like an exception (`Name: text`), or an empty string."""
    for line in reversed(tail.splitlines()):
        if _EXCEPTION_LINE.match(line):
            return line.strip()[:_MESSAGE_CHARS]
    return ""
