"""Plants a bug in product code for one test: a line of a function is replaced, and the function with it."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest


def plant(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace `old`, which must stand exactly once in `owner.name`, by `new` until the test ends.

    Raises AssertionError when the source has changed so that the bug cannot be planted any more.
    """
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has {source.count(old)} times: {old}"
    found: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(code, f"<planted in {name}>", "exec"), function.__globals__, found)
    patch.setattr(owner, name, found[name])
