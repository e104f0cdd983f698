"""Opaque, signed page cursors: a client can carry one and cannot make one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass

from shared.errors import FieldProblem, TrainyardError, invalid

_MAC_BYTES = 16
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page begins: behind (value, uuid) in one order of one selection."""

    sort: str
    value: str | int
    uuid: str
    selection: str
    """Digest of the filters: a cursor of another selection would give wrong pages silently."""


def write_cursor(cursor: Cursor, key: bytes) -> str:
    """Return the text for `next`."""
    body = json.dumps([cursor.sort, cursor.value, cursor.uuid, cursor.selection]).encode()
    return base64.urlsafe_b64encode(_mac(body, key) + body).rstrip(b"=").decode()


def read_cursor(text: str, key: bytes, sort: str, selection: str) -> Cursor:
    """Return the cursor. Raises TrainyardError 422 `cursor_invalid` for anything we did not write for this list."""
    try:
        if len(text) > _LONGEST:
            raise ValueError
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, _mac(body, key)):
            raise ValueError
        found = Cursor(*json.loads(body))
    except (ValueError, binascii.Error, TypeError):
        raise _refused() from None
    if (found.sort, found.selection) != (sort, selection):
        raise _refused()
    return found


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]


def _refused() -> TrainyardError:
    return invalid(
        [
            FieldProblem(
                "after",
                None,
                "after is not a cursor of this list; take `next` of the page before, with the same filter and sort.",
                "after 不是此列表的游标；请使用上一页返回的 next，并保持相同的筛选和排序。",
                None,
                "cursor_invalid",
            )
        ]
    )
