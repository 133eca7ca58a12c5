"""The user's own check of an answer, a Python file with `def check(answer, row) -> bool`, run in a process of its own.

A row that takes too long, or kills the process, has failed; the next one gets a new process. That keeps a slip in the
check, or in code that an answer holds, from stopping the evaluation; it is no wall against malice.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.child_process import environment
from edgetune.errors import DataError

CHILD = ("-P", "-m", "edgetune.evaluate.check_child")
START_S = 60.0
"""For Python to start and the file to be imported."""


@dataclass(frozen=True)
class Checked:
    """What the check said of all rows."""

    passed: tuple[bool, ...]
    timed_out: int
    """Rows on which it did not end in time."""
    raised: int
    """Rows on which it raised an exception, or its process died."""
    first_error: str | None


def run_check(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], *, seconds: float) -> Checked:
    """Ask the check about each (answer, row); a row says "prompt", "messages", "reference" and "place".

    Raises DataError if the file cannot be imported or has no function `check`.
    """
    passed, timed_out, errors = [], 0, []
    worker = _Worker(path)
    try:
        for answer, row in rows:
            said = worker.ask({"answer": answer, "row": dict(row)}, seconds)
            passed.append(bool(said and said.get("passed")))
            if said is None:
                timed_out += 1
            elif "error" in said:
                errors.append(said["error"])
    finally:
        worker.stop()
    return Checked(tuple(passed), timed_out, len(errors), errors[0] if errors else None)


def start_check(path: Path) -> None:
    """Raises DataError if the file cannot be imported or has no function `check`."""
    _Worker(path).stop()


class _Worker:
    """The process that holds the user's file; a new one after it had to be stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start()

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer: {"passed": bool} or {"error": text}; None if there is none in time."""
        if self._child.poll() is not None:
            self._start()
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):  # it may have died: then its silence tells
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        try:
            said = self._said.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            return None
        if said is None:
            self.stop()
            return {"error": f"the check's process ended with code {self._child.returncode}"}
        return said

    def stop(self) -> None:
        """End the process and all that it started."""
        if self._child.poll() is None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *CHILD, str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_listen, args=(self._child, self._said), daemon=True).start()
        try:
            ready = self._said.get(timeout=START_S)
        except queue.Empty:
            ready = {"error": f"is not imported after {START_S:.0f} s"}
        if ready is None or "error" in ready:
            self.stop()
            reason = ready["error"] if ready else f"ends the process with code {self._child.returncode}"
            raise DataError(f"{self._path}: {reason}", cure="evaluate.check needs `def check(answer, row) -> bool`")


def _listen(child: subprocess.Popen[str], said: queue.Queue[dict[str, Any] | None]) -> None:
    """Pass on each line; None at the end."""
    assert child.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        for line in child.stdout:
            said.put(json.loads(line))
    said.put(None)
