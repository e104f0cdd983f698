"""Folders of the job: there, writable, on a disk with room to breathe."""

from __future__ import annotations

from services.gpu_agent.hooks.context import HookContext, Refusal
from shared.disk.levels import START_BYTES
from shared.jobs.reasons import Reason
from shared.preflight.disk import check_free


def check(context: HookContext) -> Refusal | None:
    """Make the folders and try to write in each."""
    folders = (
        context.job_files.root,
        context.job_files.log.parent,
        context.attempt_files.root,
        context.checkpoint_dir,
    )
    for folder in folders:
        probe = folder / ".probe"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            return Refusal(
                "host",
                Reason.HOST_REFUSED,
                f"{folder} on the host cannot be written: {error.strerror or error}. Check its owner and the disk.",
                f"无法写入主机上的 {folder}：{error.strerror or error}。请检查所有者和磁盘。",
            )
        finding = check_free(folder, START_BYTES)
        if finding is not None:
            return Refusal.no_room(finding, folder, START_BYTES)
    return None
