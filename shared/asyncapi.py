"""The published AsyncAPI 3.0 document, generated from the event models, subjects, streams and permissions.

`python -m shared.asyncapi` writes docs/reference/asyncapi.yaml; a test says when that is out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import models_json_schema

from shared.bus.streams import CONTROL_SUBJECT, SPECS, stream_of
from shared.events.base import EventBase
from shared.events.catalogue import CALLS, EVENTS
from shared.settings import PROJECT_ROOT

OUTPUT = PROJECT_ROOT / "docs" / "reference" / "asyncapi.yaml"

SUBJECTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "jobRequests": ("req.job.{job}", ("request.job.",), "What a user asked for about a job."),
    "hostRequests": ("req.host.{host}", ("request.host.",), "What a user asked for about a host."),
    "jobs": (
        "job.{job}",
        ("job.",),
        "What the scheduler decided about a job; each event carries its whole state.",
    ),
    "hosts": ("host.{host}", ("host.",), "What is known of a host."),
    "runs": (
        "run.{host}.{job}.{attempt}",
        (
            "run.accepted.",
            "run.refused.",
            "run.started.",
            "run.checkpoint.",
            "run.exited.",
            "run.collected.",
        ),
        "Facts about one attempt, written by the agent of its host.",
    ),
    "metrics": (
        "met.{host}.{job}.{attempt}",
        ("run.metrics.", "run.system."),
        "Metrics, progress and system samples of one attempt, batched.",
    ),
    "logs": ("log.{host}.{job}.{attempt}", ("run.logs.",), "Log lines of one attempt, batched."),
    "samples": (
        "smp.{host}.{job}.{attempt}",
        ("run.samples.",),
        "Sample completions of one attempt, batched.",
    ),
    "rewards": (
        "rw.{job}.{provider}",
        ("reward.",),
        "What judges were asked and what they cost, and alerts of the reward service.",
    ),
    "alerts": ("alert.{severity}.{rule}.{job}", ("alert.",), "Alerts, for subscribers."),
}
"""Channel → address, prefixes of the event types on it, and what it is for."""

CALL_SUBJECTS: dict[str, tuple[str, str, str | None, str]] = {
    "heartbeat": (
        "hb.{host}",
        "Heartbeat",
        "HeartbeatReply",
        "An agent renews its lease every 5 s.",
    ),
    "acknowledgements": (
        "ack.{host}",
        "AckQuery",
        "AckReply",
        "An agent asks what the api has stored.",
    ),
    "secrets": (
        "secret.{host}",
        "SecretQuery",
        "SecretReply",
        "An agent fetches the secrets of its attempt.",
    ),
    "commands": ("cmd.{host}.{verb}", "HostCommand", "HostReply", "The api asks an agent."),
    "control": (
        CONTROL_SUBJECT + ".{host}.{job}",
        "ControlEntry",
        None,
        "Desired state of a run, in the key-value bucket `ctl`.",
    ),
}
PARAMETERS = {
    "job": "Id of the job (UUID); `none` on `rw.` and `alert.` where there is none.",
    "provider": "Name of the provider of judges, dots as `_`.",
    "severity": "warning or critical.",
    "rule": "What the alert is about: provider_failing, budget_low.",
    "host": "Id of the host.",
    "attempt": "Number of the attempt; higher ones fence lower ones.",
    "verb": "`read_file`, `list_files` or `check_paths`.",
}
HEADERS = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "content-type"],
    "properties": {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {"type": "string", "description": "Unique with ce-source."},
        "ce-source": {"type": "string", "examples": ["/trainyard/scheduler"]},
        "ce-type": {"type": "string", "examples": ["trainyard.job.completed.v1"]},
        "ce-time": {"type": "string", "format": "date-time"},
        "content-type": {"type": "string", "const": "application/json"},
        "traceparent": {"type": "string", "description": "W3C trace context."},
        "Nats-Msg-Id": {
            "type": "string",
            "description": "The stream drops a second message with this id.",
        },
    },
}


def types_on(channel: str) -> list[str]:
    """Return the event types that travel on a channel, sorted."""
    prefixes = SUBJECTS[channel][1]
    return sorted(name for name in EVENTS if name.startswith(prefixes))


def document() -> dict[str, Any]:
    """Return the whole document as plain data."""
    models: list[type[EventBase]] = [*EVENTS.values(), *CALLS.values()]
    _, schema = models_json_schema(
        [(m, "serialization") for m in models], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Trainyard events",
            "version": "1",
            "description": (
                "CloudEvents 1.0 (binary mode: attributes in NATS headers) on NATS JetStream. Types are added, "
                "never changed; ignore fields and types that you do not know."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "embedded": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "The broker that `trainyard up` starts; connect with an nkey.",
            }
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": {name: _message(name, model) for name, model in _messages().items()},
            "schemas": {"CloudEventHeaders": HEADERS, **schema["$defs"]},
        },
    }


def render() -> str:
    """Return the document as YAML."""
    body: str = yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=100)
    return "# Generated by `python -m shared.asyncapi`; do not edit.\n" + body


def _messages() -> dict[str, type[EventBase]]:
    used = {n for _, request, reply, _ in CALL_SUBJECTS.values() for n in (request, reply) if n}
    return EVENTS | {name: CALLS[name] for name in sorted(used)}


def _message(name: str, model: type[EventBase]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": f"trainyard.{name}" if name in EVENTS else name,
        "summary": (model.__doc__ or "").strip().splitlines()[0],
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }
    if name in EVENTS:
        message["headers"] = {"$ref": "#/components/schemas/CloudEventHeaders"}
    return message


def _channel(address: str, messages: list[str], description: str) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": address, "description": description}
    names = [p[1:-1] for p in address.split(".") if p.startswith("{")]
    channel["parameters"] = {n: {"description": PARAMETERS[n]} for n in names}
    channel["messages"] = {m: {"$ref": f"#/components/messages/{m}"} for m in messages}
    return channel


def _channels() -> dict[str, Any]:
    channels: dict[str, Any] = {}
    for name, (address, _, description) in SUBJECTS.items():
        channels[name] = _channel(address, types_on(name), description)
        spec = SPECS[stream_of(address)]
        channels[name]["x-stream"] = {
            "name": spec.name,
            "writer": spec.writer,
            "readers": spec.readers,
            "maxAgeDays": spec.max_age_days,
            "discard": spec.discard,
        }
    for name, (address, request, reply, description) in CALL_SUBJECTS.items():
        channels[name] = _channel(address, [request], description)
        if reply:
            channels[f"{name}Reply"] = {
                "address": None,
                "description": "The inbox that the request names.",
                "messages": {reply: {"$ref": f"#/components/messages/{reply}"}},
            }
    return channels


def _operations() -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for name in SUBJECTS:
        operations[f"subscribe_{name}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
        }
    for name, (_, _, reply, _) in CALL_SUBJECTS.items():
        operations[f"call_{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
        }
        if reply:
            operations[f"call_{name}"]["reply"] = {"channel": {"$ref": f"#/channels/{name}Reply"}}
    return operations


def main(output: Path = OUTPUT) -> None:
    """Write the document."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render())


if __name__ == "__main__":
    main()
