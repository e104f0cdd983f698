"""`trainyard doctor`: checks what the stack needs, each failure with its fix."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import typer
from pydantic import ValidationError

from shared.bus.embedded import BrokerMissing, health, server_binary
from shared.disk.levels import Level, in_words
from shared.disk.volumes import VolumeWatch, stack_folders
from shared.settings import Settings
from trainyard.backup.save import last
from trainyard.cli.output import OutputOption, fail, out, print_json
from trainyard.client import Client
from trainyard.stack.ports import is_free

MIN_DISK_GIB = 2.0
OLD_BACKUP_DAYS = 7.0
TRAINER_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, what was found, what to do about it."""

    check: str
    state: Literal["ok", "warning", "error"]
    found: str
    fix: str = ""


def doctor(output: OutputOption = "text") -> None:
    """Check Python, packages, broker, ports, disk, GPUs and the running stack."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        raise fail(
            f"TRAINYARD_{str(first['loc'][0]).upper()}={first['input']!r}: {first['msg']}."
        ) from None
    findings = [check(settings) for check in CHECKS]
    if output == "json":
        print_json([{f: getattr(x, f) for f in x.__slots__} for x in findings])
    else:
        for finding in findings:
            out.print(f"{finding.state:8}{finding.check:12}{finding.found}", markup=False)
            if finding.fix and finding.state != "ok":
                out.print(f"{'':20}→ {finding.fix}", markup=False)
    if any(f.state == "error" for f in findings):
        raise typer.Exit(1)


def _python(_: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", version)


def _packages(_: Settings) -> Finding:
    missing = [name for name in TRAINER_PACKAGES if _version(name) is None]
    if missing:
        return Finding(
            "trainers",
            "warning",
            f"missing: {', '.join(missing)}",
            "pip install 'trainyard[agent]' on hosts that train; the api needs none of them.",
        )
    found = ", ".join(f"{name} {_version(name)}" for name in TRAINER_PACKAGES)
    return Finding("trainers", "ok", found)


def _broker(settings: Settings) -> Finding:
    found = asyncio.run(health(settings.home, settings.nats_url))
    if found.answered and found.trouble:
        fix = (
            "Free the disk of the broker's store; `trainyard up` then starts it again by itself."
            if settings.nats_url is None
            else "Free its disk and restart the broker; nothing that was accepted is lost."
        )
        return Finding("broker", "error", f"takes no messages: {found.trouble}", fix)
    if settings.nats_url:
        return Finding("broker", "ok", f"external: {settings.nats_url}")
    try:
        return Finding("broker", "ok", str(server_binary()))
    except BrokerMissing as error:
        return Finding("broker", "error", "nats-server not found", str(error))


def _ports(settings: Settings) -> Finding:
    if (settings.home / "run" / "stack.json").exists():
        return Finding("ports", "ok", "in use by the running stack")
    wanted = {"TRAINYARD_API_PORT": settings.api_port, "TRAINYARD_NATS_PORT": settings.nats_port}
    taken = [f"{k}={p}" for k, p in wanted.items() if p and not is_free("127.0.0.1", p)]
    if taken:
        return Finding(
            "ports",
            "error",
            f"in use: {', '.join(taken)}",
            "Set another port; 0 takes any free one.",
        )
    return Finding("ports", "ok", ", ".join(f"{k}={p}" for k, p in wanted.items()))


def _disk(settings: Settings) -> Finding:
    """Name every volume of the stack once: two folders of one volume have the same room."""
    parts, low = [], False
    seen: dict[tuple[int, int], str] = {}
    for standing in VolumeWatch(stack_folders(settings)).look():
        volume = standing.volume
        short = volume.free < MIN_DISK_GIB * 2**30
        key = (volume.free // 2**20, volume.total)
        if key in seen:
            continue
        seen[key] = standing.name
        low = low or short
        word = "FULL" if standing.level is Level.FULL else "low" if short else "ok"
        parts.append(
            f"{standing.name} {word}: {volume.path} has {in_words(volume.free)} of {in_words(volume.total)} free"
        )
    fix = f"Free space there (running jobs and requests then go on by themselves), or set TRAINYARD_HOME and TRAINYARD_CHECKPOINT_DIR to a volume with {MIN_DISK_GIB:g} GiB or more."
    return Finding("disk", "error" if low else "ok", "; ".join(parts), fix)


def _gpus(_: Settings) -> Finding:
    try:
        import pynvml  # noqa: PLC0415 - part of the agent extra
    except ImportError:
        fix = "pip install 'trainyard[agent]' to see GPUs."
        return Finding("gpus", "warning", "not checked", fix)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        fix = f"Without a GPU, {os.cpu_count()} CPU slots are offered."
        return Finding("gpus", "warning", f"none ({error})", fix)
    names = [
        str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)))
        for i in range(pynvml.nvmlDeviceGetCount())
    ]
    driver = pynvml.nvmlSystemGetDriverVersion()
    return Finding("gpus", "ok", f"{', '.join(names)}; driver {driver}")


def _stack(_: Settings) -> Finding:
    with Client() as client:
        if client.is_ready():
            return Finding("stack", "ok", f"ready at {client.url}")
        wrong = "; ".join(f"{name}: {detail}" for name, detail in client.not_ready().items())
        if wrong:
            return Finding(
                "stack", "error", f"not ready at {client.url}: {wrong}", "Mend what it names."
            )
        return Finding(
            "stack", "warning", f"nothing answers at {client.url}", "Start it with `trainyard up`."
        )


def _backup(settings: Settings) -> Finding:
    if not (settings.home / "api" / "main.db").exists():
        return Finding("backup", "ok", "nothing to save yet")
    made = last(settings.home)
    fix = "`trainyard backup` saves the databases, also while the stack runs."
    if made is None:
        return Finding("backup", "warning", "none was made of this home", fix)
    days = (datetime.now(UTC) - made[0]).total_seconds() / 86_400
    found = f"{days:.1f} days old: {made[1]}"
    return Finding("backup", "warning" if days > OLD_BACKUP_DAYS else "ok", found, fix)


CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    _python, _packages, _broker, _ports, _disk, _gpus, _stack, _backup,
)  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
