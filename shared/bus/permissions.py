"""Who may use which subject: one writer for each subject tree, enforced by the broker (DESIGN section 2, rule 2)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.bus.streams import CONTROL_STREAM, CONTROL_SUBJECT, STREAMS

SERVICES = ("api", "scheduler", "reward", "up")
SYSTEM = "sys"
"""Identity in the system account; it may only be used to reload and probe the broker."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Allow-lists of one identity; everything else is refused. Its own inbox stands in both (see `Connection`)."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    """May answer one request on its reply subject."""


def inbox(name: str) -> str:
    """Return the inbox prefix of an identity; it may read answers only there."""
    return f"_INBOX.{name}"


def _reads(*streams: str) -> tuple[str, ...]:
    allowed: list[str] = []
    for stream in streams:
        allowed += [
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.DELETE.{stream}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
            f"$JS.API.DIRECT.GET.{stream}.>",
        ]
    return tuple(allowed)


def _makes_streams() -> tuple[str, ...]:
    return tuple(
        f"$JS.API.STREAM.{verb}.{spec.name}"
        for spec in STREAMS
        for verb in ("INFO", "CREATE", "UPDATE")
    )


def _purges(*streams: str) -> tuple[str, ...]:
    return tuple(f"$JS.API.STREAM.PURGE.{stream}" for stream in streams)


def of_service(role: str) -> Permissions:
    """Return what a service may do. Raises KeyError for an unknown role."""
    return {
        "api": Permissions(
            publish=(
                f"{inbox('api')}.>",
                "req.>",
                "alert.>",
                "cmd.>",
                *_makes_streams(),
                *_reads(
                    "REQUESTS", "JOBS", "RUNS", "METRICS", "LOGS", "SAMPLES", "REWARD", "ALERTS"
                ),
                *_purges("METRICS", "LOGS", "SAMPLES"),
            ),
            subscribe=(
                f"{inbox('api')}.>",
                "ack.*",
                "secret.*",
                "job.*",
                "host.*",
                "run.>",
                "met.>",
                "log.>",
                "smp.>",
                "rw.>",
            ),
            answers=True,
        ),
        "scheduler": Permissions(
            publish=(
                f"{inbox('scheduler')}.>",
                "job.*",
                "host.*",
                f"{CONTROL_SUBJECT}.>",
                *_makes_streams(),
                *_reads("REQUESTS", "JOBS", "RUNS", CONTROL_STREAM),
                *_purges("REQUESTS"),
            ),
            subscribe=(f"{inbox('scheduler')}.>", "hb.*"),
            answers=True,
        ),
        "reward": Permissions(
            publish=(f"{inbox('reward')}.>", "rw.>", "$JS.API.STREAM.INFO.REWARD"),
            subscribe=(f"{inbox('reward')}.>",),
        ),
        "up": Permissions(
            publish=(f"{inbox('up')}.>", "$JS.API.STREAM.INFO.*"),
            subscribe=(f"{inbox('up')}.>",),
        ),
    }[role]


def of_host(host: str) -> Permissions:
    """Return what the agent of `host` may do: state facts of its own host and read its own desired states."""
    return Permissions(
        publish=(
            f"{inbox(host)}.>",
            f"run.{host}.>",
            f"met.{host}.>",
            f"log.{host}.>",
            f"smp.{host}.>",
            f"hb.{host}",
            f"ack.{host}",
            f"secret.{host}",
            *(f"$JS.API.STREAM.INFO.{s}" for s in ("RUNS", "METRICS", "LOGS", "SAMPLES")),
            f"$JS.API.STREAM.INFO.{CONTROL_STREAM}",
            f"$JS.API.DIRECT.GET.{CONTROL_STREAM}.{CONTROL_SUBJECT}.{host}.>",
            f"$JS.API.CONSUMER.CREATE.{CONTROL_STREAM}.*.{CONTROL_SUBJECT}.{host}.>",
        ),
        subscribe=(f"{inbox(host)}.>", f"cmd.{host}.>"),
        answers=True,
    )
