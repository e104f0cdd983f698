"""Read the forms of `model_path`: a Hub id, a folder, a checkpoint of another job, an earlier stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shared.ids import JobId

Selector = int | Literal["best", "last"]

LARGEST_STEP = 10**9

_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(
    rf"(?P<repo>{_HUB_PART}(?:/{_HUB_PART})?)(?:@(?P<revision>[A-Za-z0-9_.-]{{1,100}}))?"
)
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A Hugging Face id; a host first looks for a folder of that name, since both are written alike."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A folder where the job runs: absolute, relative to the project root, or below `~`."""

    path: str


@dataclass(frozen=True, slots=True)
class JobModel:
    """A checkpoint of another job; without a selector the last one."""

    job: JobId
    selector: Selector = "last"


@dataclass(frozen=True, slots=True)
class StageModel:
    """A checkpoint of an earlier stage of the same pipeline; without a selector the last one."""

    name: str
    selector: Selector = "last"


ModelSource = HubModel | LocalModel | JobModel | StageModel


class ModelPathInvalid(ValueError):
    """A text that is none of the forms; `en` and `zh` say what to write instead."""

    def __init__(self, en: str, zh: str) -> None:
        """Take the end of a sentence in both languages."""
        super().__init__(en)
        self.en = en
        self.zh = zh


def parse_model_path(text: str) -> ModelSource:
    """Return what a model path names.

    Raises:
        ModelPathInvalid: it is no form of a model path; it says how to write one.
    """
    if text.startswith("job:"):
        return _job(text.removeprefix("job:"))
    if text.startswith("stage:"):
        return _stage(text.removeprefix("stage:"))
    if _SCHEME.match(text):
        raise ModelPathInvalid(
            "a model is a folder, a Hugging Face id or a job's checkpoint, not a web address; "
            "write the id alone, such as Qwen/Qwen2.5-0.5B",
            "模型应为目录、Hugging Face id 或任务的检查点，而不是网址；请只写 id，例如 Qwen/Qwen2.5-0.5B",
        )
    if not text.strip() or text != text.strip():
        raise ModelPathInvalid(
            "a model path has no blanks at its ends; remove them", "模型路径首尾不能有空格，请删除"
        )
    match = _HUB.fullmatch(text)
    if match and "--" not in text and ".." not in text:
        return HubModel(match["repo"], match["revision"])
    return LocalModel(text)


def _job(text: str) -> JobModel:
    uuid, at, selector = text.partition("@")
    try:
        job = JobId(str(UUID(uuid))) if len(uuid) <= 36 else None
    except ValueError:
        job = None
    if job is None:
        raise ModelPathInvalid(
            "after job: comes the uuid of a job, as in job:0190c0de-0000-7000-8000-000000000001@best",
            "job: 之后应为任务的 uuid，例如 job:0190c0de-0000-7000-8000-000000000001@best",
        )
    return JobModel(job, _selector(selector) if at else "last")


def _stage(text: str) -> StageModel:
    name, at, selector = text.partition("@")
    if not _STAGE.fullmatch(name):
        raise ModelPathInvalid(
            "after stage: comes the name of an earlier stage, as in stage:sft",
            "stage: 之后应为前面某个阶段的名称，例如 stage:sft",
        )
    return StageModel(name, _selector(selector) if at else "last")


def _selector(text: str) -> Selector:
    if text == "best":
        return "best"
    if text == "last":
        return "last"
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= LARGEST_STEP:
        return int(text)
    raise ModelPathInvalid(
        "after @ comes a step such as @100, or @best, or @last",
        "@ 之后应为步数（如 @100）、@best 或 @last",
    )
