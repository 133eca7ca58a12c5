"""Libraries that log and draw bars by themselves, held still while EdgeTune calls them."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def load_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, silently and without torch's compiler. Call before peft is imported,
    which imports it.

    It logs that optional `kernels` are not there, which no user could act on: the logger keeps its level. And it hands
    functions to torch.compile, which loads the compiler for as long as all the rest of bitsandbytes takes, though few
    machines ever call one: here the first call does that.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules:
        return
    with suppress(ModuleNotFoundError), _compiling_when_called():
        importlib.import_module("bitsandbytes")


@contextmanager
def _compiling_when_called() -> Iterator[None]:
    """torch.compile replaced by `_compiled_when_called`."""
    import torch

    compile_at_once = torch.compile
    torch.compile = _compiled_when_called
    try:
        yield
    finally:
        torch.compile = compile_at_once


def _compiled_when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """What torch.compile gives, which is asked for by the first call."""
    if function is None:
        return functools.partial(_compiled_when_called, **options)

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function, **options)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return compiled()(*arguments, **named)

    return call


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT without progress bars, log lines below errors and notes on what their next versions rename.

    All settings are put back afterwards; warnings about what is being done come through.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
