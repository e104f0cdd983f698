from __future__ import annotations

import pytest

from services.gpu_agent.core.exits import Ending, Evidence, ExitRecord, classify
from shared.jobs.reasons import REASONS, Reason
from shared.runs import RunResult

OOM_TRACE = (
    "[INFO] Step 1\nTraceback (most recent call last):\n  File x\n"
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
)


def exited(code: int) -> ExitRecord:
    return ExitRecord(exit_code=code)


def killed(number: int, **more: bool) -> ExitRecord:
    return ExitRecord(signal=number, **more)


@pytest.mark.parametrize(
    ("evidence", "outcome", "reason", "cause"),
    [
        # the trainer's own word comes first
        (Evidence(RunResult(outcome="completed"), exited(0)), "completed", None, None),
        (Evidence(RunResult(outcome="completed"), None), "completed", None, None),
        (
            Evidence(RunResult(outcome="completed"), killed(9), stop_mode="cancel"),
            "completed",
            None,
            None,
        ),
        (
            Evidence(RunResult(outcome="completed", reason=Reason.TARGET_REACHED), exited(0)),
            "completed",
            Reason.TARGET_REACHED,
            None,
        ),
        (
            Evidence(RunResult(outcome="stopped", stop_cause="pause"), exited(0), "pause"),
            "stopped",
            None,
            "pause",
        ),
        (Evidence(RunResult(outcome="stopped"), exited(0), "cancel"), "stopped", None, "cancel"),
        (
            Evidence(RunResult(outcome="failed", reason=Reason.NAN_LOSS), exited(1)),
            "failed",
            Reason.NAN_LOSS,
            None,
        ),
        # stopped by the agent because it was silent
        (
            Evidence(RunResult(outcome="stopped"), exited(0), "requeue", stalled=True),
            "failed",
            Reason.STALLED,
            None,
        ),
        (Evidence(None, killed(9), "requeue", stalled=True), "failed", Reason.STALLED, None),
        (
            Evidence(RunResult(outcome="completed"), exited(0), "requeue", stalled=True),
            "completed",
            None,
            None,
        ),
        # the shim's word
        (Evidence(None, killed(9)), "failed", Reason.KILLED, None),
        (Evidence(None, killed(15)), "failed", Reason.KILLED, None),
        (Evidence(None, killed(9, oom_kill=True)), "failed", Reason.HOST_OOM, None),
        (Evidence(None, killed(9), "cancel"), "stopped", None, "cancel"),
        (Evidence(None, killed(15), "pause"), "stopped", None, "pause"),
        (Evidence(None, killed(9, lease_lost=True)), "stopped", None, "requeue"),
        (Evidence(None, killed(11)), "failed", Reason.CODE_ERROR, None),
        (Evidence(None, killed(6), log_tail=OOM_TRACE), "failed", Reason.CUDA_OOM, None),
        (Evidence(None, exited(0)), "failed", Reason.EXIT_UNKNOWN, None),
        (Evidence(None, exited(1)), "failed", Reason.CODE_ERROR, None),
        (Evidence(None, exited(1), log_tail=OOM_TRACE), "failed", Reason.CUDA_OOM, None),
        (
            Evidence(None, exited(1), log_tail="OSError: [Errno 28] No space left on device"),
            "failed",
            Reason.DISK_FULL,
            None,
        ),
        (
            Evidence(None, exited(1), log_tail="RuntimeError: DefaultCPUAllocator: can't allocate"),
            "failed",
            Reason.HOST_OOM,
            None,
        ),
        (Evidence(None, exited(75)), "failed", Reason.START_FAILED, None),
        (Evidence(None, exited(76)), "failed", Reason.START_FAILED, None),
        # nobody left a word
        (Evidence(), "failed", Reason.EXIT_UNKNOWN, None),
        (Evidence(rebooted=True), "failed", Reason.HOST_REBOOTED, None),
        (Evidence(RunResult(outcome="completed"), rebooted=True), "completed", None, None),
        (Evidence(stop_mode="cancel"), "stopped", None, "cancel"),
        (Evidence(log_tail=OOM_TRACE), "failed", Reason.CUDA_OOM, None),
    ],
)
def test_verdict(
    evidence: Evidence, outcome: str, reason: Reason | None, cause: str | None
) -> None:
    ending = classify(evidence)
    assert (ending.outcome, ending.reason, ending.stop_cause) == (outcome, reason, cause)


def test_the_last_line_of_the_traceback_is_the_message() -> None:
    tail = "Traceback (most recent call last):\n  File x\nKeyError: 'text'\n[ERROR] hint\n"
    ending = classify(Evidence(None, exited(1), log_tail=tail))
    assert ending.message_en == ending.message_zh == "KeyError: 'text'"


def test_signal_is_named_in_both_languages() -> None:
    ending = classify(Evidence(None, killed(11)))
    assert "SIGSEGV" in ending.message_en
    assert "SIGSEGV" in ending.message_zh
    assert ending.message_en != ending.message_zh


def test_failures_always_have_a_sentence_and_a_known_reason() -> None:
    for code in range(256):
        _has_words(classify(Evidence(None, exited(code))))
    for number in range(1, 65):
        _has_words(classify(Evidence(None, killed(number))))


def _has_words(ending: Ending) -> None:
    assert ending.reason in REASONS
    assert ending.message_en
    assert ending.message_zh
