"""Judges that jobs bring stay bounded; what an administrator configured stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from services.reward.directory import PRIVATE_AT_MOST, Configured, Directory
from services.reward.ports import Context
from services.reward.providers import Provider

JUDGE = Configured(
    Provider(name="job", kind="openai", api_base="https://judge.example/v1", daily_budget=None),
    "key",
)
CONTEXT = Context("r", deadline=0.0)


async def test_the_private_judge_asked_longest_ago_makes_room() -> None:
    directory = Directory(
        frozenset(), asyncio.get_running_loop().time, lambda *_: None, lambda *_: None
    )
    directory.put("shared", JUDGE)
    for n in range(PRIVATE_AT_MOST):
        directory.put(f"job:{n}", JUDGE)
    assert await directory.calls("job", replace(CONTEXT, job_uuid="0")) is not None
    assert await directory.calls("job", replace(CONTEXT, job_uuid="2")) is not None
    directory.put("job:3", JUDGE)
    directory.put("job:4", JUDGE)
    for n in range(2):
        directory.put(f"job:new-{n}", JUDGE)
    names = set(directory.names())
    assert len(names) == PRIVATE_AT_MOST + 1
    assert {"shared", "job:0", "job:2", "job:3", "job:4", "job:new-0", "job:new-1"} <= names
    assert not {"job:1", "job:5"} & names
    for n in range(PRIVATE_AT_MOST):
        directory.put(f"job:later-{n}", JUDGE)
    assert directory.in_use("job:0") is None
    assert await directory.calls("job", replace(CONTEXT, job_uuid="0")) is None
    assert directory.get("shared") is not None
    await directory.close()
