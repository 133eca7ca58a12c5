"""Libraries that log and draw bars by themselves, held still while EdgeTune calls them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_bitsandbytes() -> None:
    """Call before the first import of bitsandbytes (peft imports it): it logs that optional `kernels` are not there.

    The logger keeps its level: the line says nothing a user could act on.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT without progress bars, log lines below errors and notes on what their next versions rename.

    All settings are put back afterwards; warnings about what is being done come through.
    """
    from transformers.utils import logging as transformers_logging

    silence_bitsandbytes()
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
