"""Which reason an exception stands for, so that the user reads a sentence and a remedy instead of a stack."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shared.disk.levels import Shortage
from shared.jobs.reasons import Reason


class TrainingFailure(Exception):
    """A failure whose reason is known where it is found."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        message_zh: str | None = None,
        shortage: Shortage | None = None,
    ) -> None:
        super().__init__(message)
        self.shortage = shortage
        self.reason = reason
        self.message = message
        self.message_zh = message_zh


@dataclass(frozen=True, slots=True)
class Classified:
    """The verdict on one exception; an empty `message_zh` means that only the English original exists."""

    reason: Reason
    message: str
    message_zh: str | None = None
    shortage: Shortage | None = None
    """What lacked room, where the failure says so."""


_MESSAGE_LIMIT = 600
# First match wins; matched against "TypeName: message" of each exception of the chain, outermost first.
_BY_TEXT: tuple[tuple[re.Pattern[str], Reason], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), reason)
    for pattern, reason in (
        (
            r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
            Reason.CUDA_OOM,
        ),
        (r"^(\w+\.)*OutOfMemoryError:", Reason.CUDA_OOM),
        (
            r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|^MemoryError:",
            Reason.HOST_OOM,
        ),
        (r"probability tensor contains either `inf`, `nan`", Reason.NAN_LOSS),
        (r"No space left on device|Disk quota exceeded", Reason.DISK_FULL),
        (r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+", Reason.DISK_FULL),
        (
            r"no CUDA GPUs are available|CUDA driver (version|initialization)|CUDA error: (uncorrectable ECC|unspecified launch failure|device-side assert)|NVIDIA driver",
            Reason.GPU_UNUSABLE,
        ),
        (
            r"DatasetNotFoundError:|doesn't exist on the Hub or cannot be accessed",
            Reason.DATASET_MISSING,
        ),
        (r"DatasetGenerationError|DatasetWithScriptNotSupported", Reason.DATASET_INVALID),
        (
            r"RepositoryNotFoundError|GatedRepoError|RevisionNotFoundError|is not a local folder and is not a valid model identifier",
            Reason.MODEL_MISSING,
        ),
        (
            r"OfflineModeIsEnabled|LocalEntryNotFoundError|couldn't connect to 'https?://",
            Reason.NETWORK,
        ),
        (
            r"^(\w+\.)*(ConnectionError|ConnectTimeout|ReadTimeout|ConnectError|SSLError|MaxRetryError|ProxyError|NameResolutionError):",
            Reason.NETWORK,
        ),
        (
            r"SafetensorError|Unrecognized model in|does not appear to have a file named|size mismatch for|UnpicklingError",
            Reason.MODEL_INVALID,
        ),
        (
            r"jinja2\.exceptions|UndefinedError:|TemplateError:|TemplateSyntaxError:",
            Reason.DATASET_INVALID,
        ),
        (
            r"Your setup doesn't support (bf16|fp16)|doesn't support bf16/gpu|target modules? .* not found in the base model|is not a valid (OptimizerNames|SchedulerType)",
            Reason.CONFIG_INVALID,
        ),
        (
            r"requires the following packages|is not installed|Please install ",
            Reason.CONFIG_INVALID,
        ),
    )
)


def classify(error: BaseException) -> Classified:
    """Return the reason for an exception that ended a training run; pure, total, never raises."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, TrainingFailure):
            return Classified(link.reason, link.message, link.message_zh, link.shortage)
    for link in chain:
        reason = _by_type(link) or _by_text(link)
        if reason is not None:
            return Classified(reason, _sentence(link))
    return Classified(Reason.CODE_ERROR, _sentence(error))


def no_room(short: Shortage, what_en: str, what_zh: str) -> TrainingFailure:
    """Return the failure for a folder without room: it names what was to be written, path, need and have."""
    return TrainingFailure(
        Reason.DISK_FULL,
        f"The disk is full: {what_en} {short.en}.",
        f"磁盘已满：{what_zh} {short.zh}。",
        short,
    )


def _by_type(error: BaseException) -> Reason | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Reason.DISK_FULL
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return Reason.HOST_OOM
    return None


def _by_text(error: BaseException) -> Reason | None:
    text = f"{type(error).__module__}.{type(error).__qualname__}: {error}".removeprefix("builtins.")
    return next((reason for pattern, reason in _BY_TEXT if pattern.search(text)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > _MESSAGE_LIMIT:
        text = text[:_MESSAGE_LIMIT] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
