"""Libraries held still."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgetune.model.quiet import _compiled_when_called, load_bitsandbytes


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


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_compiler_is_put_back_once_bitsandbytes_is_there_or_is_not(
    monkeypatch: pytest.MonkeyPatch, *, is_installed: bool
) -> None:
    compile_at_once, seen = torch.compile, []

    def import_it(name: str) -> None:
        seen.append((name, torch.compile))
        if not is_installed:
            raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr("edgetune.model.quiet.importlib", SimpleNamespace(import_module=import_it))
    load_bitsandbytes()
    assert seen == [("bitsandbytes", _compiled_when_called)]
    assert torch.compile is compile_at_once
