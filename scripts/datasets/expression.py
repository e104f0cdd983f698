"""Exact evaluation of the small formulas behind the sales problems: + - * / and floor, min, round, over fractions."""

import ast
from fractions import Fraction
from math import floor

_MOST_DECIMALS = 4


def evaluate(formula: str) -> Fraction:
    """The exact value of `formula`; raises ValueError for anything but plain arithmetic."""
    return _value(ast.parse(formula, mode="eval").body)


def as_text(value: Fraction) -> str:
    """A finite decimal without trailing zeros, such as 91 or 4.25; raises ValueError where there is none."""
    scaled = value * 10**_MOST_DECIMALS
    if scaled.denominator != 1:
        raise ValueError(f"{value} has more than {_MOST_DECIMALS} decimals")
    whole, rest = divmod(abs(scaled.numerator), 10**_MOST_DECIMALS)
    decimals = f"{rest:0{_MOST_DECIMALS}d}".rstrip("0")
    return ("-" if value < 0 else "") + str(whole) + (f".{decimals}" if decimals else "")


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _call(name, [_value(argument) for argument in arguments])
    raise ValueError(f"not plain arithmetic: {ast.unparse(node)}")


def _call(name: str, values: list[Fraction]) -> Fraction:
    if name == "floor" and len(values) == 1:
        return Fraction(floor(values[0]))
    if name == "min":
        return min(values)
    if name == "round" and len(values) == 2:
        power = Fraction(10) ** int(values[1])
        return Fraction(floor(values[0] * power + Fraction(1, 2))) / power
    raise ValueError(f"unknown function {name}")
