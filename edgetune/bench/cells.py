"""Cells of a bench's table: numbers with their units and noise, and why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgetune.bench.noise import is_absent

ABSENT = "-"
MIB = 1024**2
Form = Callable[[float], str]
"""A number as text."""
Cell = tuple[str, str]
"""What is shown, and why nothing is, or ""."""


def mib(size_bytes: float) -> str:
    """Bytes in MiB."""
    return f"{size_bytes / MIB:,.1f} MiB" if size_bytes < 100 * MIB else f"{size_bytes / MIB:,.0f} MiB"


def time_of(seconds: float) -> str:
    """Seconds, or milliseconds where they are few."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def rate(per_s: float) -> str:
    """Tokens a second."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:,.1f}"


def share(value: float) -> str:
    """A share as percent; a task of lm-eval may have a number of another kind."""
    return f"{value:.1%}" if -0.5 <= value <= 1.5 else f"{value:.4g}"


def at(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The value under some keys, or what is absent on the way to it."""
    for key in keys:
        if is_absent(value):
            break
        value = value[key]
    return value


def one(value: Mapping[str, Any], key: str, form: Form) -> Cell:
    """One number."""
    return (ABSENT, value["absent"]) if is_absent(value) else (form(value[key]), "")


def value_of(value: Mapping[str, Any], form: Form) -> Cell:
    """A number with its bootstrap interval."""
    if is_absent(value):
        return ABSENT, value["absent"]
    if value["interval"] is None:
        return form(value["value"]), ""
    low, high = value["interval"]
    return f"{form(value['value'])} ({form(low)} to {form(high)})", ""


def noisy(value: Mapping[str, Any], form: Form) -> Cell:
    """A median with the spread between processes."""
    if is_absent(value):
        return ABSENT, value["absent"]
    spread = "" if value["spread"] is None else f" ±{value['spread'] / 2:.1%}"
    return f"{form(value['median'])}{spread}", ""
