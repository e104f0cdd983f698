"""The AsyncAPI document is up to date, complete and consistent."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from shared import asyncapi
from shared.events import subjects
from shared.events.catalogue import CALLS, EVENTS
from tests.contract.events.test_golden import FILES, load

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi.document()


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    return set()


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_the_file_is_up_to_date() -> None:
    assert asyncapi.OUTPUT.exists(), "run python -m shared.asyncapi"
    assert asyncapi.OUTPUT.read_text() == asyncapi.render(), "run python -m shared.asyncapi"


def test_it_is_written_where_it_is_asked_to(tmp_path) -> None:
    asyncapi.main(tmp_path / "new" / "asyncapi.yaml")
    text = (tmp_path / "new" / "asyncapi.yaml").read_text()
    assert yaml.safe_load(text)["asyncapi"] == "3.0.0"


def test_every_event_is_on_exactly_one_channel() -> None:
    placed = [t for channel in asyncapi.SUBJECTS for t in asyncapi.types_on(channel)]
    assert sorted(placed) == sorted(EVENTS)


def test_every_reference_leads_somewhere(document) -> None:
    for reference in references(document):
        assert resolve(document, reference) is not None


def test_every_parameter_of_an_address_is_described(document) -> None:
    for channel in document["channels"].values():
        if channel["address"]:
            names = {p[1:-1] for p in channel["address"].split(".") if p.startswith("{")}
            assert set(channel["parameters"]) == names


def test_addresses_agree_with_the_subjects_in_code(document) -> None:
    channels = document["channels"]
    for name, spelled in {
        "jobRequests": subjects.request("{job}"),
        "hostRequests": subjects.host_request("{host}"),
        "jobs": subjects.job("{job}"),
        "hosts": subjects.host("{host}"),
        "heartbeat": subjects.heartbeat("{host}"),
        "acknowledgements": subjects.ack("{host}"),
        "secrets": subjects.secret("{host}"),
        "commands": subjects.command("{host}", "{verb}"),
        "control": "$KV.ctl." + subjects.control_key("{host}", "{job}"),
    }.items():
        assert channels[name]["address"] == spelled


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_files_fit_the_published_schemas(path, document) -> None:
    headers, data = load(path)
    name = path.stem.removeprefix("call.")
    model = (EVENTS | CALLS)[name]
    schema = document["components"]["schemas"][model.__name__]
    whole = schema | {"components": document["components"]}
    jsonschema.validate(data, whole)
    if name in EVENTS:
        jsonschema.validate(headers, asyncapi.HEADERS)
