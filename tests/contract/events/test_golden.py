"""Every event that was ever on the wire can be read for ever: one golden file a type, never changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.events import Envelope, EventMalformed, UnknownEvent, decode, encode
from shared.events.catalogue import CALLS, EVENTS
from shared.events.run import MetricsBatch, RunExited

pytestmark = pytest.mark.contract
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.json"))
EVENT_FILES = [f for f in FILES if not f.name.startswith("call.")]
CALL_FILES = [f for f in FILES if f.name.startswith("call.")]


def load(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    content = json.loads(path.read_text())
    return content["headers"], content["data"]


def contains(whole: Any, part: Any) -> bool:
    """Tell whether `whole` is `part`, or `part` with more fields."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            k in whole and contains(whole[k], v) for k, v in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list)
            and len(whole) == len(part)
            and all(contains(w, p) for w, p in zip(whole, part, strict=True))
        )
    return bool(whole == part)


def test_every_type_has_a_golden_file_and_every_file_a_type() -> None:
    names = {f.stem for f in FILES}
    expected = set(EVENTS) | {f"call.{name}" for name in CALLS}
    assert expected - names == set(), "write a golden file for these"
    assert names - expected == set(), "these types were removed: nobody may"


@pytest.mark.parametrize("path", EVENT_FILES, ids=lambda p: p.stem)
def test_an_event_decodes_and_comes_back_whole(path: Path) -> None:
    headers, data = load(path)
    envelope, event = decode(headers, json.dumps(data).encode())
    assert type(event) is EVENTS[path.stem]
    assert envelope.id == headers["ce-id"]
    assert envelope.traceparent == headers["traceparent"]
    again_headers, body = encode(event, envelope)
    assert again_headers == headers
    assert contains(json.loads(body), data)
    assert decode(again_headers, body) == (envelope, event)


@pytest.mark.parametrize("path", CALL_FILES, ids=lambda p: p.stem)
def test_a_call_decodes_and_comes_back_whole(path: Path) -> None:
    _, data = load(path)
    model = CALLS[path.stem.removeprefix("call.")]
    message = model.model_validate_json(json.dumps(data))
    assert contains(json.loads(message.model_dump_json()), data)
    assert model.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_fields_of_a_newer_version_are_ignored(path: Path) -> None:
    headers, data = load(path)
    newer = json.dumps(data | {"added_later": {"a": [1]}}).encode()
    if path in CALL_FILES:
        CALLS[path.stem.removeprefix("call.")].model_validate_json(newer)
    else:
        assert decode(headers, newer) == decode(headers, json.dumps(data).encode())


@pytest.mark.parametrize("path", EVENT_FILES, ids=lambda p: p.stem)
def test_an_event_without_its_required_fields_is_malformed(path: Path) -> None:
    headers, data = load(path)
    model = EVENTS[path.stem]
    required = [n for n, f in model.model_fields.items() if f.is_required()]
    for name in required:
        with pytest.raises(EventMalformed):
            decode(headers, json.dumps({k: v for k, v in data.items() if k != name}).encode())


def test_an_unknown_type_is_carried_not_refused() -> None:
    _, event = decode({}, b'{"type": "job.teleported.v9", "x": 1}')
    assert isinstance(event, UnknownEvent)
    assert event.type == "job.teleported.v9"
    assert json.loads(event.data) == {"type": "job.teleported.v9", "x": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"type": 3}',
        b'"job.queued.v1"',
        b"[" * 5000,
        b'{"type": "job.queued.v1"}',
    ],
)
def test_bytes_that_are_no_event_are_malformed(data: bytes) -> None:
    with pytest.raises(EventMalformed):
        decode(None, data)


def test_broken_headers_do_not_lose_the_event() -> None:
    headers, data = load(GOLDEN / "job.running.v1.json")
    body = json.dumps(data).encode()
    envelope, event = decode({"ce-time": "yesterday"}, body)
    assert event == decode(headers, body)[1]
    assert envelope.id == ""


def test_events_are_frozen() -> None:
    headers, data = load(GOLDEN / "run.collected.v1.json")
    _, event = decode(headers, json.dumps(data).encode())
    with pytest.raises(ValidationError):
        event.seq = 9  # type: ignore[union-attr,misc]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_value_that_is_not_finite_reaches_the_wire(value: float) -> None:
    envelope = Envelope("i", "s", datetime.now(UTC))
    for event in (
        RunExited(seq=1, t=0.0, outcome="completed", final_metrics={"loss": value}),
        MetricsBatch(first_seq=1, items=({"metrics": {"loss": value}},)),
    ):
        body = encode(event, envelope)[1]
        assert b'"loss":null' in body
        assert decode(None, body)[1] is not None
