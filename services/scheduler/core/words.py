"""Why a job waits, in words with numbers, in both languages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from shared.disk.levels import START_BYTES, Shortage, Volume, shortage
from shared.jobs.lifecycle import Bilingual
from shared.jobs.reasons import Reason


@dataclass(frozen=True, slots=True)
class Why:
    """A reason and its sentence."""

    reason: Reason
    en: str
    zh: str

    @property
    def text(self) -> Bilingual:
        """Return the sentence as it is published."""
        return _text(self.en, self.zh)


@lru_cache(maxsize=4096)
def _text(en: str, zh: str) -> Bilingual:
    return Bilingual(en=en, zh=zh)


NO_AGENT = Why(Reason.NO_HOST_ONLINE, "no agent online", "没有在线的 agent")
ALL_DRAINED = Why(Reason.HOST_DRAINED, "every online host is drained", "所有在线主机均已排空")


def gpus(count: int) -> str:
    """Return `1 GPU`, `2 GPUs`."""
    return "1 GPU" if count == 1 else f"{count} GPUs"


def pinned_unknown(pin: str) -> Why:
    """Return the words for a pin that names no host."""
    return Why(Reason.HOST_PINNED, f"host {pin} is not known", f"没有名为 {pin} 的主机")


def pinned_offline(pin: str) -> Why:
    """Return the words for a pinned host without an agent."""
    return Why(Reason.HOST_PINNED, f"host {pin} is offline", f"主机 {pin} 不在线")


def drained(label: str) -> Why:
    """Return the words for one drained host."""
    return Why(Reason.HOST_DRAINED, f"host {label} is drained", f"主机 {label} 已排空")


def no_room(label: str, volume: Volume) -> Why:
    """Return the words for a host whose disk is full."""
    return lacks(label, shortage(volume, START_BYTES))


def lacks(label: str, short: Shortage) -> Why:
    """Return the words for a folder without the room that is needed; in steps, for every change is an event."""
    short = Shortage(short.path, short.need, short.have - short.have % max(1, short.need // 16))
    en, zh = f"disk full on {label}: {short.en}", f"{label} 磁盘已满：{short.zh}"
    return Why(Reason.DISK_FULL, en, zh)


def no_such_type(gpu_type: str, there: str) -> Why:
    """Return the words for a GPU type that no online host has."""
    have_en = f"; there is {there}" if there else ""
    have_zh = f"；现有 {there}" if there else ""
    return Why(
        Reason.GPU_TYPE_MISSING,
        f"no online host has gpu_type {gpu_type}{have_en}",
        f"没有在线主机具备 gpu_type {gpu_type}{have_zh}",
    )


def memory_short(needed_mib: int, largest_mib: int) -> Why:
    """Return the words for GPUs that are all too small; MiB shown as GiB."""
    needed, largest = needed_mib / 1024, largest_mib / 1024
    return Why(
        Reason.NOT_ENOUGH_GPUS,
        f"needs {needed:.0f} GiB of GPU memory, largest GPU has {largest:.0f} GiB",
        f"需要 {needed:.0f} GiB 显存，最大的 GPU 为 {largest:.0f} GiB",
    )


def not_free(needed: int, largest: int) -> Why:
    """Return the words for a demand that must wait for running jobs."""
    return Why(
        Reason.NOT_ENOUGH_GPUS,
        f"needs {gpus(needed)}, largest free host has {largest}",
        f"需要 {needed} 块 GPU，最大的空闲主机有 {largest} 块",
    )


def kept_for(label: str, ahead: str) -> Why:
    """Return the words for GPUs that are kept for a job ahead."""
    return Why(
        Reason.QUEUED_BEHIND,
        f"GPUs of {label} are kept for {ahead}, which is ahead of it",
        f"{label} 的 GPU 已为排在前面的 {ahead} 保留",
    )


def refused(labels: str) -> Why:
    """Return the words for hosts that said no a moment ago."""
    return Why(
        Reason.HOST_REFUSED,
        f"{labels} refused it a moment ago; it is asked again soon",
        f"{labels} 刚刚拒绝了它，稍后会再次尝试",
    )


def checkpoint_on(label: str, state_en: str, state_zh: str) -> Why:
    """Return the words for a checkpoint on a host that cannot take the job now."""
    return Why(
        Reason.CHECKPOINT_ELSEWHERE,
        f"checkpoint on {label} ({state_en})",
        f"检查点在 {label} 上（{state_zh}）",
    )


def waits_for(name: str) -> Why:
    """Return the words for a dependency."""
    return Why(Reason.WAITS_FOR_JOB, f"waits for job {name}", f"等待任务 {name}")


def try_again_at(moment: datetime) -> Why:
    """Return the words for a back-off."""
    at = f"{moment:%H:%M:%S} UTC"
    return Why(Reason.RETRY_BACKOFF, f"tried again at {at}", f"将于 {at} 重试")


def starting_on(label: str) -> Why:
    """Return the words for a job that has a host and no process yet."""
    return Why(Reason.ASSIGNED, f"starting on {label}", f"正在 {label} 上启动")
