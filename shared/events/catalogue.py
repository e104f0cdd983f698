"""Every message there is, by type: the source of golden files and of the published AsyncAPI document."""

from __future__ import annotations

import typing

from shared.events import Event, calls
from shared.events.base import EventBase


def _members(union: object) -> list[type[EventBase]]:
    found: list[type[EventBase]] = []
    for member in typing.get_args(union):
        found += _members(member) or [member]
    return found


EVENTS: dict[str, type[EventBase]] = {
    str(model.model_fields["type"].default): model for model in _members(Event)
}
"""Stored events by their `type`."""
CALLS: dict[str, type[EventBase]] = {
    name: model
    for name, model in vars(calls).items()
    if isinstance(model, type)
    and issubclass(model, EventBase)
    and model.__module__ == calls.__name__
}
"""Request and reply messages, and values of the control bucket, by class name."""
