"""A request answered in a fresh process: JSON goes in, events and one result come out. Standard library only.

`answer` is the child's side, a module's main; `ask` the parent's. What is measured in a process of its own has a peak
memory of its own, and a bundle is measured without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from edgetune import errors
from edgetune.progress import Progress

Answer = Callable[[Mapping[str, Any], Progress], Mapping[str, Any]]


def ask(
    arguments: Sequence[str],
    request: Mapping[str, Any],
    *,
    name: str,
    cure: str = "close other programs",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `python -P <arguments>` answers to a request; events go to `progress`. -P: no module of the current folder
    stands in for a library.

    Raises the EdgeTuneError that the process raised, OutOfMemoryError with `cure` if it was killed, RuntimeError with
    its trace for anything else. `name` says what was measured.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = start(arguments, log)
        try:
            outcome = _listen(child, request, progress)
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()
        if outcome is not None:
            return outcome
        log.seek(0)
        raise _death(name, child.returncode, log.read(), cure)


def start(arguments: Sequence[str], log: TextIO) -> subprocess.Popen[str]:
    """`python -P <arguments>`, with a pipe to its stdin and one from its stdout; its stderr goes to `log`."""
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment(),
        text=True,
        encoding="utf-8",
    )


def answer(measure: Answer) -> int:
    """Answer the request on stdin by `measure`, which may report events: the main of a child process.

    The exit code is that of the error; 1 without a word for a bug, whose trace is on stderr.
    """
    channel = _claim_stdout()
    request = json.load(sys.stdin)
    try:
        _send(channel, {"result": measure(request, lambda event: _send(channel, {"event": dict(event)}))})
    except errors.EdgeTuneError as error:
        _send(channel, {"error": type(error).__name__, "message": error.message, "cure": error.cure})
        return error.exit_code
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            _send(channel, {"error": "OutOfMemoryError", "message": f"{request['name']}: memory ran out", "cure": ""})
            return 4
        traceback.print_exc()
        return 1
    return 0


def _claim_stdout() -> TextIO:
    """Stdout as the channel to the parent; what libraries print goes to stderr from now on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _send(channel: TextIO, value: Mapping[str, Any]) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


def environment() -> dict[str, str]:
    """Of a child: ours, with this very edgetune first on the path."""
    package = str(Path(errors.__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}


def _listen(
    child: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress | None
) -> dict[str, Any] | None:
    """Send the request, pass events on, wait for the end; the result, None if the process died without a word."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:  # it may be dead already: its exit code tells
        child.stdin.write(json.dumps(request))
    outcome = None
    with child.stdout:
        for line in child.stdout:
            said = json.loads(line)
            if "event" in said and progress:
                progress(said["event"])
            elif "error" in said:
                child.wait()
                raise getattr(errors, said["error"])(said["message"], cure=said["cure"])
            outcome = said.get("result", outcome)
    child.wait()
    return outcome


def _death(name: str, code: int, log: str, cure: str) -> Exception:
    if code in (-9, 137):
        return errors.OutOfMemoryError(
            f"{name}: its process was killed while it was measured, most likely for lack of memory", cure=cure
        )
    return RuntimeError(f"measuring {name} ended with code {code}\n{log[-4000:]}")
