"""Which names a secret may have: a variable such as HF_TOKEN, or a write-only parameter of the job."""

from __future__ import annotations

import re

from pydantic import TypeAdapter, ValidationError

from services.api.validation import field_problems
from shared.errors import invalid
from shared.specs.config import SECRET_FIELDS
from shared.specs.text import SecretName

_VARIABLE: TypeAdapter[str] = TypeAdapter(SecretName)
_COMPONENT = re.compile(r"rewards\.[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.reward_model_api_key")

NAME_PATTERN = (
    rf"^(?:[A-Z][A-Z0-9_]{{0,63}}|{'|'.join(sorted(SECRET_FIELDS))}|{_COMPONENT.pattern})$"
)
"""For OpenAPI; `check_name` also refuses a few names that steer how programs start."""


def check_name(name: str) -> None:
    """Raise TrainyardError 422 for a name that no part of a job would read."""
    if name in SECRET_FIELDS or _COMPONENT.fullmatch(name):
        return
    try:
        _VARIABLE.validate_python(name)
    except ValidationError as error:
        found = [{**e, "loc": ("name",)} for e in error.errors()]
        raise invalid(field_problems(found)) from None
