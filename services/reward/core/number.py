"""Closed-form numbers: exact where they are rational, a float where a root, pi or e is in them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MAX_LENGTH: Final = 20_000
MAX_DEPTH: Final = 40
MAX_BITS: Final = 200_000
"""A number longer than this (60,000 digits) is nobody's answer."""
MAX_FACTORIAL: Final = 170


class NotANumber(Exception):
    """The text is not one closed-form number: a list, a variable, a relation, a division by zero."""


class TooComplex(Exception):
    """Its value is too large to be written out."""


@dataclass(frozen=True, slots=True)
class Number:
    """`exact` where the value is rational; `decimal` where a decimal fraction or an exponent was written."""

    value: Fraction | float
    decimal: bool = False

    @property
    def is_exact(self) -> bool:
        """Tell whether equality means equality and not nearness."""
        return isinstance(self.value, Fraction) and not self.decimal


def same(gold: Number, answer: Number, rtol: float, atol: float) -> bool:
    """Compare values: exactly where both are exact, else |a-b| <= max(atol, rtol*|gold|)."""
    if gold.is_exact and answer.is_exact:
        return gold.value == answer.value
    if isinstance(gold.value, Fraction) and isinstance(answer.value, Fraction):
        difference = abs(gold.value - answer.value)
        # by their decimal digits: 1e-6 as a float is a little less than a millionth
        allowed = max(Fraction(repr(atol)), Fraction(repr(rtol)) * abs(gold.value))
        return difference <= allowed
    a, b = _float(gold.value), _float(answer.value)
    return abs(a - b) <= max(atol, rtol * abs(a))


def _float(value: Fraction | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_TOKEN: Final = re.compile(
    r"""
    (?P<number>(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,)[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]*+)?|\.[0-9]++)
    (?P<exponent>[eE][-+]?[0-9]++)?
    | (?P<macro>\\(?:[A-Za-z]++|[,;:!%{} ]))
    | (?P<word>[A-Za-zπ]++)
    | (?P<sign>\*\*|[-+*/^(){}\[\]!%×·÷√∙])
    | (?P<space>\s++|~)
    """,
    re.VERBOSE,
)
_SPACES: Final = frozenset({"\\,", "\\;", "\\:", "\\!", "\\ ", "\\quad", "\\qquad", "~"})
_TIMES: Final = frozenset({"*", "×", "·", "∙", "\\times", "\\cdot"})
_OVER: Final = frozenset({"/", "÷", "\\div"})
_CONSTANTS: Final = {"\\pi": math.pi, "π": math.pi, "pi": math.pi, "e": math.e}
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


def parse_number(text: str) -> Number:
    """Return the value of a text that is one closed-form number (see `latex.prepared`).

    Raises NotANumber, or TooComplex where the value could not be written out (a power tower, a large factorial).
    """
    if len(text) > MAX_LENGTH:
        raise TooComplex
    reader = _Reader(_tokens(text))
    try:
        value = reader.sum()
    except RecursionError:
        raise TooComplex from None
    if reader.peek() is not None:
        raise NotANumber
    if isinstance(value, float) and not math.isfinite(value):
        raise TooComplex
    return Number(value, reader.decimal)


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise NotANumber
        at = found.end()
        if found.lastgroup != "space" and found.group() not in _SPACES:
            tokens.append(found.group())
    if not tokens:
        raise NotANumber
    return tokens


class _Reader:
    """Recursive descent over sums, products, powers and atoms."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self.decimal = False

    def peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> str:
        token = self.peek()
        if token is None:
            raise NotANumber
        self._at += 1
        return token

    def sum(self) -> Fraction | float:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooComplex
        total = self._product()
        while self.peek() in ("+", "-"):
            sign = self._next()
            value = self._product()
            total = _add(total, value if sign == "+" else -value)
        self._depth -= 1
        return total

    def _product(self) -> Fraction | float:
        total = self._signed()
        while True:
            token = self.peek()
            if token in _TIMES:
                self._next()
                total = _multiply(total, self._signed())
            elif token in _OVER:
                self._next()
                total = _divide(total, self._signed())
            elif token is not None and self._begins_factor(token):
                total = _multiply(total, self._power())
            else:
                return total

    def _begins_factor(self, token: str) -> bool:
        """Tell whether a factor follows without a sign: `2\\sqrt3`, `2\\pi`, `2(3)`; two numbers side by side are none."""
        return token in ("\\sqrt", "√", "(", "\\frac", "[", "{") or token in _CONSTANTS

    def _signed(self) -> Fraction | float:
        if self.peek() in ("+", "-"):
            return self._signed() if self._next() == "+" else -self._signed()
        return self._power()

    def _power(self) -> Fraction | float:
        base = self._postfix()
        if self.peek() not in ("^", "**"):
            return base
        self._next()
        return _raise(base, self._exponent())

    def _exponent(self) -> Fraction | float:
        if self.peek() == "{":
            return self._group()
        if self.peek() == "-":
            self._next()
            return -self._power()
        return self._power()

    def _postfix(self) -> Fraction | float:
        value = self._atom()
        while self.peek() in ("!", "%", "\\%"):
            value = _factorial(value) if self._next() == "!" else _divide(value, Fraction(100))
        return value

    def _atom(self) -> Fraction | float:
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            return self._mixed(self._literal(token))
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token == "\\frac":
            return self._fraction()
        if token in ("\\sqrt", "√"):
            return self._root()
        if token in ("(", "{", "["):
            self._at -= 1
            return self._group()
        raise NotANumber

    def _literal(self, token: str) -> Fraction:
        digits = token.replace("{,}", "").replace("\\,", "").replace(",", "")
        if len(digits) > 4000:
            raise TooComplex
        mantissa, _, exponent = digits.lower().partition("e")
        mantissa = mantissa.removesuffix(".")
        if "." in mantissa or exponent:
            self.decimal = True
        if exponent and abs(int(exponent)) > 9999:
            raise TooComplex
        return Fraction(f"{mantissa}e{exponent}" if exponent else mantissa)

    def _mixed(self, whole: Fraction) -> Fraction | float:
        """Read `1\\frac34` as 1.75: a whole number directly before a fraction is added, not multiplied."""
        if self.peek() != "\\frac" or whole.denominator != 1:
            return whole
        at = self._at
        self._next()
        part = self._fraction()
        if isinstance(part, Fraction) and 0 < part < 1:
            return whole + part
        self._at = at
        return whole

    def _fraction(self) -> Fraction | float:
        above = self._argument()
        return _divide(above, self._argument())

    def _argument(self) -> Fraction | float:
        if self.peek() == "{":
            return self._group()
        token = self._next()
        if token.isdigit():  # \frac12: one digit each
            if len(token) > 1:
                self._tokens[self._at - 1 : self._at] = [token[0], token[1:]]
            return Fraction(token[0])
        self._at -= 1
        return self._atom()

    def _root(self) -> Fraction | float:
        degree: Fraction | float = Fraction(2)
        if self.peek() == "[":
            degree = self._group()
        value = self._argument() if self.peek() != "(" else self._group()
        if degree == 0:
            raise NotANumber
        return _raise(value, _divide(Fraction(1), degree))

    def _group(self) -> Fraction | float:
        opening = self._next()
        value = self.sum()
        if self._next() != _CLOSING[opening]:
            raise NotANumber
        return value


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooComplex
    return value


def _add(a: Fraction | float, b: Fraction | float) -> Fraction | float:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a + b)
    return _float(a) + _float(b)


def _multiply(a: Fraction | float, b: Fraction | float) -> Fraction | float:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a * b)
    return _float(a) * _float(b)


def _divide(a: Fraction | float, b: Fraction | float) -> Fraction | float:
    if b == 0:
        raise NotANumber
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a / b)
    return _float(a) / _float(b)


def _raise(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _whole_power(base, exponent.numerator)
        root = _exact_root(base, exponent)
        if root is not None:
            return root
    if base == 0 and exponent <= 0:
        raise NotANumber
    if base < 0:
        odd = isinstance(exponent, Fraction) and exponent.denominator % 2 == 1
        if not odd:
            raise NotANumber  # a complex number
        return -_float_power(-base, exponent) if exponent.numerator % 2 else _float_power(-base, exponent)  # type: ignore[union-attr]  # fmt: skip
    return _float_power(base, exponent)


def _whole_power(base: Fraction, exponent: int) -> Fraction:
    if base == 0 and exponent <= 0:
        raise NotANumber
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if base not in (0, 1, -1) and bits * abs(exponent) > MAX_BITS:
        raise TooComplex
    if base in (1, -1):
        return base if exponent % 2 else Fraction(1)
    return base**exponent


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a root that is rational, such as `\\sqrt{4}`; None where it is not or would be long to find."""
    degree = exponent.denominator
    if base < 0 or degree > 64 or abs(exponent.numerator) > 64 or base.numerator.bit_length() > 512:
        return None
    parts = [round(_float(n) ** (1 / degree)) for n in (base.numerator, base.denominator)]
    if parts[0] ** degree != base.numerator or parts[1] ** degree != base.denominator:
        return None
    return _whole_power(Fraction(parts[0], parts[1]), exponent.numerator)


def _float_power(base: Fraction | float, exponent: Fraction | float) -> float:
    try:
        return float(_float(base) ** _float(exponent))
    except (OverflowError, ZeroDivisionError):
        raise TooComplex from None


def _factorial(value: Fraction | float) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        raise NotANumber
    if value > MAX_FACTORIAL:
        raise TooComplex
    return Fraction(math.factorial(value.numerator))
