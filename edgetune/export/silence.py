"""The model builder prints, draws bars and warns at each step: nothing of it reaches the user."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Run a block with stdout and stderr (the file descriptors, so C++ too) led aside and Python warnings ignored."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        aside = stack.enter_context(tempfile.TemporaryFile("w"))
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            with contextlib.suppress(OSError):  # a closed descriptor has nothing to lead aside
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(aside.fileno(), descriptor)
        # In memory, never closed: a log handler that is made meanwhile keeps the stream it finds.
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
