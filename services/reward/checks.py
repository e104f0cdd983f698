"""What a spec's types cannot say: patterns that compile, schemas that are sound, groups where they are needed."""

from __future__ import annotations

from collections.abc import Iterator

from services.reward.core.patterns import compiled
from services.reward.core.schemas import schema_problem
from shared.errors import FieldProblem, invalid
from shared.rewards.rule_specs import FormatCheck, JsonSchemaRule, Regex, RuleBased
from shared.rewards.scores import Item
from shared.rewards.specs import Reward, SelfPlay, parts


def check_reward(reward: Reward) -> None:
    """Refuse a reward that could never score. Raises TrainyardError 422 naming each mistake."""
    found = [problem for part in parts(reward) for problem in _problems(part)]
    if found:
        raise invalid([_told(field, text) for field, text in found])


def check_items(reward: Reward, items: tuple[Item, ...]) -> None:
    """Refuse a batch whose items cannot be told apart, or lack the group a reward needs. Raises TrainyardError 422."""
    ids = [item.id for item in items]
    if len(set(ids)) != len(ids):
        double = next(i for i in ids if ids.count(i) > 1)
        raise invalid(
            [
                FieldProblem(
                    "items",
                    double,
                    f"Two items have the id {double!r}; give each its own.",
                    f"有两个条目的 id 都是 {double!r}，请各用各的。",
                    code="duplicate",
                )
            ]
        )
    if not any(isinstance(part, SelfPlay) for part in parts(reward)):
        return
    counts: dict[str | None, int] = {}
    for item in items:
        counts[item.group_id] = counts.get(item.group_id, 0) + 1
    for group, count in counts.items():
        if group is None or count < 2:
            raise invalid(
                [
                    FieldProblem(
                        "items.group_id",
                        group,
                        "self_play lets completions of one prompt compete: give 2 to 16 items the same group_id.",
                        "self_play 需要同一提示的多个回答竞争：请给 2 到 16 个条目相同的 group_id。",
                        "2 to 16 items a group",
                        "group",
                    )
                ]
            )


def _problems(part: Reward) -> Iterator[tuple[str, str]]:
    if isinstance(part, FormatCheck):
        if part.pattern is not None:
            yield from _pattern("reward.pattern", part.pattern)
        if part.json_schema is not None:
            yield from _schema("reward.json_schema", part.json_schema)
    if isinstance(part, RuleBased):
        for place, rule in enumerate(part.rules):
            if isinstance(rule, Regex):
                yield from _pattern(f"reward.rules.{place}.pattern", rule.pattern)
            if isinstance(rule, JsonSchemaRule):
                yield from _schema(f"reward.rules.{place}.json_schema", rule.json_schema)


def _pattern(field: str, pattern: str) -> Iterator[tuple[str, str]]:
    try:
        compiled(pattern)
    except ValueError as error:
        yield field, str(error)


def _schema(field: str, schema: dict[str, object]) -> Iterator[tuple[str, str]]:
    problem = schema_problem(schema)
    if problem is not None:
        yield field, problem


def _told(field: str, text: str) -> FieldProblem:
    return FieldProblem(
        field,
        None,
        f"{field} cannot be used: {text}.",
        f"{field} 无法使用：{text}。",
        code="invalid",
    )
