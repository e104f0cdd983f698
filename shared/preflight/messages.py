"""The check of one conversation: a list of {"role", "content"} that ends with the assistant."""

from collections.abc import Iterator
from itertools import pairwise

from shared.preflight.finding import Finding, Place, shown
from shared.preflight.sources import FIELD

ROLES = ("system", "user", "assistant", "tool")
_ROLE_LIST = ", ".join(ROLES)
_OTHER_ROLES = {
    "human": "user",
    "customer": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
}


def check_messages(value: object, name: str, place: Place) -> Iterator[Finding]:
    """Everything wrong with the conversation in column `name`."""
    if not isinstance(value, list):
        yield _not_a_list(value, name, place)
        return
    if not value:
        yield _finding(
            place,
            name,
            "empty_text",
            f'"{name}" is an empty list. Add a user and an assistant message.',
            f"“{name}”是空列表。请至少写入一条 user 和一条 assistant 消息。",
            "[]",
        )
        return
    roles: list[str | None] = []
    for number, message in enumerate(value, 1):
        role, problems = _check_message(message, name, number, place)
        roles.append(role)
        yield from problems
    yield from _check_order(roles, name, place)


def _check_message(
    message: object, name: str, number: int, place: Place
) -> tuple[str | None, list[Finding]]:
    if not isinstance(message, dict):
        return None, [
            _finding(
                place,
                name,
                "wrong_type",
                f'message {number} is {type(message).__name__}, it must be {{"role": …, "content": …}}.',
                f'第 {number} 条消息的类型是 {type(message).__name__}，应为 {{"role": …, "content": …}}。',
                shown(message),
            )
        ]
    problems = [
        problem
        for problem in (
            _check_role(message, name, number, place),
            _check_content(message, name, number, place),
        )
        if problem
    ]
    role = message.get("role")
    return (role if isinstance(role, str) and role in ROLES else None), problems


def _check_role(message: dict[str, object], name: str, number: int, place: Place) -> Finding | None:
    role = message.get("role")
    if isinstance(role, str) and role in ROLES:
        return None
    if "role" not in message:
        if "from" in message:
            en, zh = (
                ' It has "from" instead: rename it to "role".',
                "其中有“from”，请改名为“role”。",
            )
        else:
            en, zh = f" Add one of {_ROLE_LIST}.", f"请补上 {_ROLE_LIST} 之一。"
        return _finding(
            place,
            name,
            "missing_role",
            f'message {number} has no "role".{en}',
            f"第 {number} 条消息没有“role”。{zh}",
            allowed=_ROLE_LIST,
        )
    near = _OTHER_ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    hint_en = f' Write "{near}".' if near else f" Use one of {_ROLE_LIST}."
    hint_zh = f"请改为“{near}”。" if near else f"可用：{_ROLE_LIST}。"
    return _finding(
        place,
        name,
        "unknown_role",
        f"message {number} has the unknown role {shown(role, 30)}.{hint_en}",
        f"第 {number} 条消息的角色 {shown(role, 30)} 无法识别。{hint_zh}",
        shown(role, 30),
        _ROLE_LIST,
    )


def _check_content(
    message: dict[str, object], name: str, number: int, place: Place
) -> Finding | None:
    if "content" not in message:
        if "value" in message:
            en, zh = (
                ' It has "value" instead: rename it to "content".',
                "其中有“value”，请改名为“content”。",
            )
        else:
            en, zh = " Add the text.", "请补上文本。"
        return _finding(
            place,
            name,
            "missing_content",
            f'message {number} has no "content".{en}',
            f"第 {number} 条消息没有“content”。{zh}",
        )
    content = message["content"]
    if content is None:
        return _finding(
            place,
            name,
            "null_value",
            f"message {number} has the content null. Write the text, or drop the row.",
            f"第 {number} 条消息的 content 为 null。请填写内容或删除该条。",
            "null",
            "text",
        )
    if not isinstance(content, str):
        return _finding(
            place,
            name,
            "wrong_type",
            f"message {number} has content of type {type(content).__name__}, it must be text.",
            f"第 {number} 条消息的 content 类型是 {type(content).__name__}，应为文本。",
            shown(content),
            "text",
        )
    if not content.strip():
        return _finding(
            place,
            name,
            "empty_text",
            f"message {number} is empty. Write the text, or drop the row.",
            f"第 {number} 条消息是空的。请填写内容或删除该条。",
            "",
            "text",
        )
    return None


def _check_order(roles: list[str | None], name: str, place: Place) -> Iterator[Finding]:
    if roles[-1] not in ("assistant", None):
        yield _finding(
            place,
            name,
            "last_turn_not_assistant",
            f"the last message is from {roles[-1]}; a conversation to learn from ends with assistant. Drop that message or add the answer.",
            f"最后一条消息来自 {roles[-1]}；用于训练的对话应以 assistant 结尾。请删除该消息或补上回答。",
            roles[-1],
            "assistant",
        )
    if "system" in roles[1:]:
        yield _finding(
            place,
            name,
            "system_not_first",
            "a system message stands behind other messages. Move it to the front.",
            "system 消息出现在其他消息之后。请移到最前面。",
            "system",
        )
    if None not in roles and "user" not in roles:
        yield _finding(
            place,
            name,
            "no_user_turn",
            "the conversation has no user message. Add what the user asks.",
            "对话中没有 user 消息。请补上用户的提问。",
            allowed="user",
        )
    pairs = pairwise(roles)
    if any(one == two and one in ("user", "assistant") for one, two in pairs):
        yield _finding(
            place,
            name,
            "roles_do_not_alternate",
            "user and assistant do not take turns; some chat templates refuse that.",
            "user 与 assistant 没有交替出现，部分对话模板不支持。",
            severity_warning=True,
        )


def _not_a_list(value: object, name: str, place: Place) -> Finding:
    csv_en = (
        " A .csv cell cannot hold a conversation: use .jsonl, .json or .parquet."
        if isinstance(value, str)
        else ""
    )
    csv_zh = (
        "　.csv 单元格放不下对话，请改用 .jsonl、.json 或 .parquet。"
        if isinstance(value, str)
        else ""
    )
    return _finding(
        place,
        name,
        "wrong_type",
        f'"{name}" is {type(value).__name__}, it must be a list of {{"role", "content"}}.{csv_en}',
        f'“{name}”的类型是 {type(value).__name__}，应为 {{"role", "content"}} 的列表。{csv_zh}',
        shown(value),
        "list of messages",
    )


def _finding(  # noqa: PLR0913  # the shared tail of every finding about a conversation
    place: Place,
    name: str,
    code: str,
    en: str,
    zh: str,
    value: str | None = None,
    allowed: str | None = None,
    *,
    severity_warning: bool = False,
) -> Finding:
    return Finding(
        code,
        FIELD,
        f"{place.en}: {en}",
        f"{place.zh}：{zh}",
        place.line,
        place.row,
        name,
        value,
        allowed,
        "warning" if severity_warning else "error",
    )
