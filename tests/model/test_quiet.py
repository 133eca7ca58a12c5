"""Libraries held still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgetune.model.quiet import _compiled_when_called


def test_what_is_compiled_when_called_is_compiled_once_and_by_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_it(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return lambda value: function(value) + 1

    monkeypatch.setattr("torch.compile", compile_it)

    @_compiled_when_called
    def plain(value: int) -> int:
        return value

    @_compiled_when_called(dynamic=False)
    def with_options(value: int) -> int:
        return 2 * value

    assert asked == []
    assert (plain(1), plain(2), with_options(3)) == (2, 3, 7)
    assert asked == [{}, {"dynamic": False}]
    assert plain.__name__ == "plain"
