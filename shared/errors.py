"""One root for errors that a user may see: code, HTTP status, a sentence in both languages, fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.jobs.reasons import Lang


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field: RFC 9457 `errors[]` as PRODUCT section 10 has it."""

    field: str
    value: Any
    message_en: str
    message_zh: str
    allowed: Any = None
    code: str = "invalid"

    def as_json(self, lang: Lang) -> dict[str, Any]:
        """Return the JSON form in one language."""
        message = self.message_zh if lang == "zh" else self.message_en
        return {
            "field": self.field,
            "value": self.value,
            "message": message,
            "allowed": self.allowed,
            "code": self.code,
        }


@dataclass
class TrainyardError(Exception):
    """Base of every expected refusal; anything else is a defect and a 500."""

    code: str
    status: int
    title_en: str
    title_zh: str
    detail_en: str
    detail_zh: str
    errors: Sequence[FieldProblem] = field(default_factory=tuple)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the English sentence."""
        return self.detail_en

    def problem(self, lang: Lang) -> dict[str, Any]:
        """Return the `application/problem+json` document (RFC 9457) in one language."""
        zh = lang == "zh"
        body: dict[str, Any] = {
            "type": f"https://trainyard.dev/problems/{self.code}",
            "title": self.title_zh if zh else self.title_en,
            "status": self.status,
            "detail": self.detail_zh if zh else self.detail_en,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [e.as_json(lang) for e in self.errors]
        return body


def invalid(errors: Sequence[FieldProblem]) -> TrainyardError:
    """Return the 422 that names every wrong field."""
    first = errors[0]
    more = len(errors) - 1
    tail_en = f" (and {more} more)" if more else ""
    tail_zh = f"（另有 {more} 处）" if more else ""
    return TrainyardError(
        "invalid",
        422,
        "Invalid input",
        "输入有误",
        first.message_en + tail_en,
        first.message_zh + tail_zh,
        errors,
    )


def not_found(what_en: str, what_zh: str, key: str) -> TrainyardError:
    """Return the 404 for one thing."""
    return TrainyardError(
        "not_found",
        404,
        "Not found",
        "未找到",
        f"There is no {what_en} {key!r}. List them to see what exists.",
        f"不存在{what_zh} {key!r}，请先列出现有项。",
    )


def conflict(code: str, detail_en: str, detail_zh: str) -> TrainyardError:
    """Return the 409 with its own code."""
    return TrainyardError(code, 409, "Conflict", "冲突", detail_en, detail_zh)


def unavailable(code: str, detail_en: str, detail_zh: str, retry_after: int = 2) -> TrainyardError:
    """Return the 503 that says when to try again (seconds)."""
    return TrainyardError(
        code,
        503,
        "Temporarily unavailable",
        "暂时不可用",
        detail_en,
        detail_zh,
        headers={"Retry-After": str(retry_after)},
    )
