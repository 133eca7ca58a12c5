"""Processes of their own that start at once: forked from one that has imported what a torch model needs.

Importing it takes seconds, and hundreds of tests measure a model in a fresh process. A warm one differs from that only
in memory that it shares with others, so a bundle, whose memory and imports tests look at, still gets a fresh one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import pytest

from edgetune import child_process

FRESH = ("bundle", "gguf")
"""Kinds of target that are measured without torch."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "peft",
        "transformers.models.llama.modeling_llama",
        "transformers.models.bert.modeling_bert",
        "edgetune.evaluate.child",
        "edgetune.evaluate.torch_model",
    ]
)
fresh_ask = child_process.ask


def warm_ask(arguments: Sequence[str], request: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`child_process.ask`, by a warm process where that makes no difference."""
    if request.get("kind") in FRESH or arguments[0] != "-m":
        return fresh_ask(arguments, request, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_process, "start", Warm)
        return fresh_ask(arguments, request, **options)


def run_script(script: Path, *arguments: object, out: Path) -> int:
    """`python script arguments` in a warm process; its exit code. What it says goes to out/stdout and out/stderr."""
    command = [str(script), *map(str, arguments)]
    process = SERVER.Process(target=_run_script, args=(command, out, child_process.environment(), str(Path.cwd())))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


class Warm:
    """What `child_process` uses of a subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], log: TextIO) -> None:
        _, module = arguments
        requests, self._requests = SERVER.Pipe(duplex=False)
        self._answers, answers = SERVER.Pipe(duplex=False)
        log_end = Connection(os.dup(log.fileno()))
        ends = (requests, answers, log_end)
        self._process = SERVER.Process(target=_serve, args=(module, ends, child_process.environment(), str(Path.cwd())))
        self._process.start()
        for end in ends:
            end.close()
        self.stdin = os.fdopen(os.dup(self._requests.fileno()), "w", encoding="utf-8")
        self.stdout = os.fdopen(os.dup(self._answers.fileno()), encoding="utf-8")
        self._requests.close()
        self._answers.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def _serve(module: str, ends: Sequence[Connection], environment: Mapping[str, str], folder: str) -> None:
    """In the warm process: stand where a fresh one would, and run the module's main."""
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    _stand_in(environment, folder)
    sys.exit(importlib.import_module(module).main())


def _run_script(command: Sequence[str], out: Path, environment: Mapping[str, str], folder: str) -> None:
    """In the warm process: run a script as `python` does."""
    for number, name in enumerate(("stdout", "stderr"), start=1):
        with (out / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    _stand_in(environment, folder)
    sys.argv[:] = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _stand_in(environment: Mapping[str, str], folder: str) -> None:
    """Stand where a fresh process would: its variables, its folder, and streams on its first three files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
