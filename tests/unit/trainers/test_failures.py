"""Every known way in which a run fails, and the reason it gets."""

import errno

import pytest

from services.gpu_agent.trainers.failures import TrainingFailure, classify
from shared.jobs.reasons import Reason


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class SafetensorError(Exception):
    """Named like that of safetensors."""


class UndefinedError(Exception):
    """Named like that of jinja2."""


class OfflineModeIsEnabled(ConnectionError):
    """Named like that of huggingface_hub."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Reason.CUDA_OOM),
        (RuntimeError("CUDA error: out of memory"), Reason.CUDA_OOM),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), Reason.CUDA_OOM),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            Reason.HOST_OOM,
        ),
        (MemoryError(), Reason.HOST_OOM),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Reason.HOST_OOM),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.DISK_FULL),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
            Reason.DISK_FULL,
        ),
        (
            RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"),
            Reason.NAN_LOSS,
        ),
        (RuntimeError("No CUDA GPUs are available"), Reason.GPU_UNUSABLE),
        (
            SafetensorError("Error while deserializing header: invalid header length"),
            Reason.MODEL_INVALID,
        ),
        (
            ValueError("Unrecognized model in x. Should have a `model_type` key"),
            Reason.MODEL_INVALID,
        ),
        (
            RuntimeError("Error(s) in loading state_dict: size mismatch for lm_head"),
            Reason.MODEL_INVALID,
        ),
        (
            OSError("x is not a local folder and is not a valid model identifier"),
            Reason.MODEL_MISSING,
        ),
        (
            OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
            Reason.NETWORK,
        ),
        (OfflineModeIsEnabled("offline"), Reason.NETWORK),
        (ConnectionError("refused"), Reason.NETWORK),
        (UndefinedError("'dict object' has no attribute 'content'"), Reason.DATASET_INVALID),
        (
            ValueError("Your setup doesn't support bf16/gpu. You need to assign use_cpu"),
            Reason.CONFIG_INVALID,
        ),
        (ValueError("Target modules {'q'} not found in the base model."), Reason.CONFIG_INVALID),
        (KeyError("text"), Reason.CODE_ERROR),
        (StopIteration(), Reason.CODE_ERROR),
        (KeyboardInterrupt(), Reason.CODE_ERROR),
    ],
)
def test_reason_of_each_exception(error, reason):
    assert classify(error).reason is reason


def test_our_own_failure_keeps_its_words_in_both_languages():
    inner = TrainingFailure(Reason.DATASET_INVALID, "Line 3 is empty.", "第 3 行为空。")
    outer = RuntimeError("while reading")
    outer.__cause__ = inner
    verdict = classify(outer)
    assert (verdict.reason, verdict.message, verdict.message_zh) == (
        Reason.DATASET_INVALID,
        "Line 3 is empty.",
        "第 3 行为空。",
    )


def test_the_cause_below_a_wrapper_decides():
    outer = RuntimeError("saving failed")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert classify(outer).reason is Reason.DISK_FULL


def test_a_chain_that_bites_its_tail_ends():
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).reason is Reason.CODE_ERROR


def test_a_long_message_is_cut():
    assert len(classify(RuntimeError("x" * 5000)).message) < 700
