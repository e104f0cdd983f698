"""Subjects, the only place where they are spelled. Identity is read from here, never from a payload."""

from __future__ import annotations

from dataclasses import dataclass


def request(job: str) -> str:
    """Return the subject of users' requests about a job."""
    return f"req.job.{job}"


def host_request(host: str) -> str:
    """Return the subject of users' requests about a host."""
    return f"req.host.{host}"


def job(job_id: str) -> str:
    """Return the subject of the scheduler's decisions about a job."""
    return f"job.{job_id}"


def host(host_id: str) -> str:
    """Return the subject of the scheduler's view of a host."""
    return f"host.{host_id}"


def heartbeat(host_id: str) -> str:
    """Return the request subject of a host's heartbeat."""
    return f"hb.{host_id}"


def ack(host_id: str) -> str:
    """Return the request subject on which a host asks what the api has stored."""
    return f"ack.{host_id}"


def secret(host_id: str) -> str:
    """Return the request subject on which a host asks for an attempt's secrets."""
    return f"secret.{host_id}"


def command(host_id: str, verb: str) -> str:
    """Return the request subject of a command to a host."""
    return f"cmd.{host_id}.{verb}"


def control_key(host_id: str, job_id: str) -> str:
    """Return the key of a run's desired state in the bucket `ctl`."""
    return f"{host_id}.{job_id}"


def control_epoch_key(host_id: str) -> str:
    """Return the key that tells for which epoch a host's desired states are complete."""
    return f"{host_id}.epoch"


def reward(job_id: str | None, provider: str | None) -> str:
    """Return the subject of what the reward service says; a dot would make two tokens of a name."""
    return f"rw.{_token(job_id)}.{_token(provider)}"


def alert(severity: str, rule: str, job_id: str | None) -> str:
    """Return the subject of an alert."""
    return f"alert.{severity}.{rule}.{_token(job_id)}"


def _token(name: str | None) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name or "none")


@dataclass(frozen=True, slots=True)
class RunSubject:
    """`<prefix>.<host>.<job>.<attempt>`; prefix is run, met, log or smp."""

    prefix: str
    host: str
    job: str
    attempt: int

    def __str__(self) -> str:
        """Spell the subject."""
        return f"{self.prefix}.{self.host}.{self.job}.{self.attempt}"

    @staticmethod
    def parse(subject: str) -> RunSubject:
        """Read a subject back. Raises ValueError when it is not of this form."""
        prefix, host_id, job_id, attempt = subject.split(".")
        if prefix not in {"run", "met", "log", "smp"}:
            raise ValueError(f"not a run subject: {subject}")
        return RunSubject(prefix, host_id, job_id, int(attempt))


PREFIX_OF_KIND = {"run": "run", "met": "met", "sys": "met", "log": "log", "smp": "smp"}
