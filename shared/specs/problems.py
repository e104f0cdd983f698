"""What a refused job body is told: one `FieldError` a mistake, in both languages, with nothing secret in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import FieldProblem, TrainyardError, invalid
from shared.jobs.reasons import Lang

SHOWN_CHARACTERS = 80
LARGEST_EXACT = 2**53  # beyond it a JSON reader in a browser changes the number

_SECRET_NAME = re.compile(r"key|passw|secret|token|credential", re.IGNORECASE)
_PUBLIC = frozenset({"reward_fn_answer_key"})
_SECRET_TEXT = re.compile(
    r"sk-[A-Za-z0-9_-]{6,}|hf_[A-Za-z0-9]{6,}|Bearer\s+\S+|-----BEGIN|://[^/\s@]+@", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class FieldError(FieldProblem):
    """What is wrong with one parameter; `value` is shortened, JSON safe, and masked where it is a secret."""

    def message(self, lang: Lang) -> str:
        """Return the sentence in one language."""
        return self.message_zh if lang == "zh" else self.message_en


class SpecInvalid(TrainyardError):
    """A job body that cannot be a spec; `errors` holds every mistake found, never just the first."""

    errors: Sequence[FieldError]

    def __init__(self, errors: Sequence[FieldError]) -> None:
        """Take at least one error."""
        told = invalid(errors)
        super().__init__(
            told.code,
            told.status,
            told.title_en,
            told.title_zh,
            told.detail_en,
            told.detail_zh,
            tuple(errors),
        )

    def __str__(self) -> str:
        """Return every sentence in English."""
        return " ".join(error.message_en for error in self.errors)


def names_a_secret(field: str) -> bool:
    """Tell whether a field of this name (also a mistyped one) may carry a secret."""
    last = field.rpartition(".")[2]
    return field.startswith("secrets.") or (
        last not in _PUBLIC and _SECRET_NAME.search(last) is not None
    )


def shown(field: str, value: object) -> str | int | float | bool | None:
    """Return the JSON-safe, short form of a refused value; a possible secret becomes `***`."""
    if value is None or isinstance(value, bool):
        return value
    if names_a_secret(field):
        return "***"
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_EXACT else _huge(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, str):
        return "***" if _SECRET_TEXT.search(value[:4096]) else plain(value)
    if isinstance(value, Mapping):
        return f"{{…}} ({len(value)})"
    if isinstance(value, (list, tuple)):
        return f"[…] ({len(value)})"
    return type(value).__name__


def quoted(field: str, value: object) -> str:
    """Return a refused value as it stands inside a sentence."""
    short = shown(field, value)
    if short is None:
        return "null"
    if isinstance(short, bool):
        return "true" if short else "false"
    if isinstance(value, str) and short != "***":
        return f'"{short}"'
    return str(short)


def plain(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a text shortened, with what cannot be printed (control, bidi, surrogates) escaped."""
    head = text[:limit]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return escaped if len(text) <= limit else escaped + "…"


def _huge(value: int) -> str:
    digits = int(value.bit_length() * math.log10(2))
    return f"{'-' if value < 0 else ''}10^{digits}" if digits > 20 else str(value)


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
