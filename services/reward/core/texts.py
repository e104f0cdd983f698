"""Items as the functions see them: prompts and completions as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.rewards.scores import Item, Text


@dataclass(frozen=True, slots=True)
class Sample:
    """One item, its messages joined to text."""

    prompt: str
    completion: str
    solution: str | None = None
    group: str | None = None
    truncated: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


def sample_of(item: Item) -> Sample:
    """Return an item as text: of a completion in messages the assistant's part, of a prompt all turns with their roles."""
    return Sample(
        prompt_text(item.prompt),
        completion_text(item.completion),
        item.solution,
        item.group_id,
        item.truncated,
        item.metadata,
    )


def completion_text(completion: Text) -> str:
    """Return what the model wrote."""
    if isinstance(completion, str):
        return completion
    spoken = [m.content for m in completion if m.role == "assistant"]
    return "\n".join(spoken or [m.content for m in completion])


def prompt_text(prompt: Text) -> str:
    """Return a prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m.role}: {m.content}" for m in prompt)
