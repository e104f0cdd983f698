"""The words of a refusal: what a parameter takes and what to do, in English and Chinese."""

from __future__ import annotations

from shared.jobs.reasons import Lang
from shared.specs.parameters import Parameter, number_text
from shared.specs.problems import FieldError, quoted, shown


def refusal(field: str, value: object, code: str, parameter: Parameter) -> FieldError:
    """Return the error for a value outside what a parameter takes: field, value, allowed, what to do."""
    return FieldError(
        field=field,
        value=shown(field, value),
        code=code,
        message_en=f"{field} is {quoted(field, value)}; it must be {needed(parameter, 'en')}. "
        + way_out(parameter, "en"),
        message_zh=f"{field} 的值为 {quoted(field, value)}，应为{needed(parameter, 'zh')}。"
        + way_out(parameter, "zh"),
        allowed=parameter.allowed(),
    )


def told(field: str, value: object, code: str, en: str, zh: str) -> FieldError:
    """Return an error whose sentences are complete already."""
    return FieldError(
        field=field, value=shown(field, value), code=code, message_en=en, message_zh=zh
    )


def needed(parameter: Parameter, lang: Lang) -> str:
    """Return what a parameter takes, as the end of a sentence."""
    zh = lang == "zh"
    if parameter.kind == "choice":
        names = ("、" if zh else ", ").join(parameter.choices)
        if len(parameter.choices) == 1:
            return names
        return f"以下之一：{names}" if zh else f"one of {names}"
    if parameter.kind in ("integer", "number"):
        return _number(parameter, zh)
    if parameter.kind == "boolean":
        return " true 或 false" if zh else "true or false"
    if parameter.kind == "string":
        return _text(parameter, zh)
    if parameter.kind == "components":
        if zh:
            return f" 1 到 {parameter.longest} 个奖励的列表，每个是带 name 的对象"
        return f"a list of 1 to {parameter.longest} rewards, each an object with a name"
    if parameter.kind == "list":
        return (
            f"最多 {parameter.longest} 项文本的列表"
            if zh
            else f"a list of at most {parameter.longest} texts"
        )
    if zh:
        return f"最多 {parameter.longest} 项的对象"
    return f"an object with at most {parameter.longest} entries"


def _number(parameter: Parameter, zh: bool) -> str:
    noun = (
        ("整数" if zh else "a whole number")
        if parameter.kind == "integer"
        else ("数" if zh else "a number")
    )
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        pair = (number_text(low), number_text(high))
        return (
            f" {pair[0]} 到 {pair[1]} 之间的{noun}" if zh else f"{noun} from {pair[0]} to {pair[1]}"
        )
    parts = [
        (parameter.above, "greater than", "大于"),
        (low, "at least", "不小于"),
        (parameter.below, "less than", "小于"),
        (high, "at most", "不超过"),
    ]
    limits = [(number_text(n), en, zh_) for n, en, zh_ in parts if n is not None]
    if zh:
        return "且".join(f"{word} {n} " for n, _, word in limits) + f"的{noun}"
    return f"{noun} " + " and ".join(f"{word} {n}" for n, word, _ in limits)


def _text(parameter: Parameter, zh: bool) -> str:
    low, high = parameter.shortest or 0, parameter.longest
    if low:
        return f" {low} 到 {high} 个字符的文本" if zh else f"a text of {low} to {high} characters"
    return f"不超过 {high} 个字符的文本" if zh else f"a text of at most {high} characters"


def way_out(parameter: Parameter, lang: Lang) -> str:
    """Return what a user can do who does not know what to put there."""
    zh = lang == "zh"
    if parameter.required:
        return "该参数必填。" if zh else "It cannot be left out."
    if parameter.default in (None, "", [], {}):
        return "不需要时可省略。" if zh else "Leave it out if you do not need it."
    text = default_text(parameter)
    return f"省略时取默认值 {text}。" if zh else f"Leave it out to take the default {text}."


def default_text(parameter: Parameter) -> str:
    """Return a default as it stands in JSON."""
    value = parameter.default
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return number_text(value)
    return str(value) if value or isinstance(value, (list, dict)) else '""'
