"""`trainyard backup` and `trainyard restore`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from shared.settings import Settings
from trainyard.cli.output import fail, out


def backup(
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; default: one with the time in its name, here."),
    ] = None,
    with_master_key: Annotated[
        bool,
        typer.Option(
            "--with-master-key", help="Put the key that reads stored secrets into the file too."
        ),
    ] = False,
) -> None:
    """Save the databases of the stack on this machine into one file, also while it runs."""
    from trainyard.backup import save  # noqa: PLC0415 - other commands start faster

    settings, now = Settings(), datetime.now(UTC)
    target = (out_file or Path(save.default_name(now))).expanduser().resolve()
    try:
        saved = save.save(settings, target, with_master_key=with_master_key, now=now)
    except save.BackupRefused as error:
        raise fail(str(error)) from None
    manifest = saved.manifest
    _say(
        f"Backup: {saved.path} ({saved.size / 2**20:.1f} MiB, readable by you alone), as of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC."
    )
    _say(f"It holds: {', '.join(entry.name for entry in manifest.members)}.")
    _say(
        f"It does not hold checkpoints; they are in {settings.checkpoint_dir} and on the hosts. Copy those you care about."
    )
    _say(
        "It does not hold the broker's store or the files of hosts: what they know beyond the backup is taken back at a restore."
    )
    if with_master_key:
        _say(
            f"It holds keys/master.key, which reads all {manifest.secrets} stored secrets: keep the file as you keep passwords."
        )
    else:
        _say(
            f"It does not hold keys/master.key, without which the {manifest.secrets} stored secrets cannot be read: "
            f"keep a copy of {settings.home / 'keys' / 'master.key'} elsewhere, or use --with-master-key."
        )


def restore(
    file: Annotated[Path | None, typer.Argument(help="The backup.")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Into a home that is not empty: what is replaced is kept aside."
        ),
    ] = False,
    master_key: Annotated[
        Path | None, typer.Option("--master-key", help="Your copy of keys/master.key.")
    ] = None,
    without_secrets: Annotated[
        bool, typer.Option("--without-secrets", help="Go on though stored secrets cannot be read.")
    ] = False,
    mark: Annotated[
        bool,
        typer.Option(
            "--mark",
            help="The databases were put back by other means, such as pg_restore: only mark them.",
        ),
    ] = False,
) -> None:
    """Put a backup into TRAINYARD_HOME; the stack must be stopped."""
    from trainyard.backup import restore as work  # noqa: PLC0415 - other commands start faster
    from trainyard.backup import swap  # noqa: PLC0415
    from trainyard.backup.archive import ArchiveRefused  # noqa: PLC0415
    from trainyard.backup.marks import MarkRefused  # noqa: PLC0415
    from trainyard.backup.stack import StackRuns  # noqa: PLC0415

    settings, now = Settings(), datetime.now(UTC)
    if (file is None) != mark:
        raise fail("Name the backup: `trainyard restore FILE`; or give --mark alone.")
    try:
        if file is None:
            work.mark(settings, now)
            _say("The databases are marked as restored: each service catches up at its next start.")
            return
        done = work.restore(
            settings, file, force=force, keys=work.Keys(master_key, without_secrets), now=now
        )
    except (work.RestoreRefused, ArchiveRefused, MarkRefused, StackRuns) as error:
        raise fail(f"{error} Nothing was changed.") from None
    except OSError as error:
        begun = swap.pending(settings.home) is not None
        after = (
            "The restore has begun and is finished by the next `trainyard up`"
            if begun
            else "Nothing was changed"
        )
        raise fail(f"{error}. {after}.") from None
    _tell(settings, done)


def _tell(settings: Settings, done: object) -> None:
    from trainyard.backup.restore import Restored  # noqa: PLC0415

    assert isinstance(done, Restored)
    _say(
        f"Restored the backup of {done.manifest.made_at:%Y-%m-%d %H:%M:%S} UTC into {settings.home}."
    )
    if done.aside is not None:
        _say(f"What it replaced is in {done.aside}; remove it once all is well.")
    if done.keeps_bus:
        _say(
            "The broker's store is there: requests and decisions made since the backup are taken back at the next start."
        )
    else:
        _say(
            "The broker's store is gone: what was asked for since the backup is lost, but for what hosts still know of older jobs."
        )
    if done.unreadable:
        _say(
            f"{done.manifest.secrets} stored secrets: those of master key {', '.join(done.unreadable)} cannot be read; set them anew."
        )
    for host in done.joined_since:
        _say(f"Host {host} is not known to the backup: let it join again.")
    _say(
        "Start the stack with `trainyard up`; logs/api.log and logs/scheduler.log tell what was taken back (event `restored`)."
    )


def _say(sentence: str) -> None:
    out.print(sentence, markup=False)
