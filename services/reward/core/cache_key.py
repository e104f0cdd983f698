"""By what a verdict is found again: everything that could have changed it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def cache_key(**parts: Any) -> str:
    """Return the SHA-256 of the parts in canonical JSON; texts are in it only as what they hash to."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
