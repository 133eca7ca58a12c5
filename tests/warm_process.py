"""Processes of their own that start at once: forked from one that has imported what they need, see warm_server.py.

Importing it takes seconds with torch and half a second without, and hundreds of tests measure a model in a fresh
process. A warm one differs from that only in memory that it shares with others. What measures a bundle is forked from a
server that has not imported torch. Both serve all of pytest's workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
import warm_server

from edgetune import child_process

OWNER = "EDGETUNE_TESTS_OWNER"
"""Variable with the id of the process that pytest was started as."""
DEVICE, TORCH = "device", "torch"
MODULES = {
    DEVICE: (
        "edgetune.evaluate.child",
        "edgetune.bench.child",
        "edgetune.runtime.classifier",
        "edgetune.runtime.decoder",
        "edgetune.runtime.logits",
        "onnxruntime_genai",
    ),
    TORCH: (
        "edgetune.model.quiet:load_bitsandbytes",  # before peft, as the product does, without torch's compiler
        "peft",
        "transformers.models.llama.modeling_llama",
        "transformers.models.bert.modeling_bert",
        "edgetune.evaluate.child",
        "edgetune.evaluate.torch_model",
    ),
}
"""What each server imports, see warm_server.main."""
fresh_ask = child_process.ask


def warm_ask(arguments: Sequence[str], request: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`child_process.ask`, by a warm process where that makes no difference."""
    kind = request.get("kind")
    if kind == "gguf" or arguments[0] != "-m":
        return fresh_ask(arguments, request, **options)
    server = DEVICE if kind == "bundle" else TORCH
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_process, "start", lambda arguments, log: Warm(server, arguments, log))
        return fresh_ask(arguments, request, **options)


def run_script(script: Path, *arguments: object, out: Path) -> int:
    """`python script arguments` in a warm process; its exit code. What it says goes to out/stdout and out/stderr."""
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr, Path(os.devnull).open() as stdin:
        ends = (stdin.fileno(), stdout.fileno(), stderr.fileno())
        return Forked(TORCH, [str(script), *map(str, arguments)], ends).wait()


class Forked:
    """A process forked from a server; `command` is what would follow `python`, `ends` are its first three files."""

    def __init__(self, server: str, command: Sequence[str], ends: Sequence[int]) -> None:
        request = warm_server.Request(
            command=list(command),
            environment=child_process.environment(),
            folder=str(Path.cwd()),
            cores=sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        )
        self.returncode: int | None = None
        with _connected(server) as connection:
            socket.send_fds(connection, [b"."], ends)
            connection.sendall(json.dumps(request).encode() + b"\n")
            self._told = connection.makefile("rb", buffering=0)
        self._process = int(self._told.readline())

    def poll(self) -> int | None:
        """The exit code, None before the end."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code, at its end."""
        if self.returncode is None:
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode


class Warm(Forked):
    """What `child_process` uses of a subprocess.Popen."""

    def __init__(self, server: str, arguments: Sequence[str], log: TextIO) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        try:
            super().__init__(server, arguments, (theirs_in, theirs_out, log.fileno()))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.stdin = os.fdopen(ours_in, "w", encoding="utf-8")
        self.stdout = os.fdopen(ours_out, encoding="utf-8")


def servers_folder() -> Path:
    """Where the sockets of this test run's servers are; without it they end."""
    return Path(tempfile.gettempdir()) / f"edgetune-tests-{os.environ[OWNER]}"


@contextlib.contextmanager
def _connected(server: str) -> Iterator[socket.socket]:
    """A connection to a server, which the first that asks starts."""
    folder = servers_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / server
    with socket.socket(socket.AF_UNIX) as connection:
        with (folder / f"{server}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                connection.connect(str(path))
            except OSError:  # not started yet, or left by an owner of the same number
                path.unlink(missing_ok=True)
                _start(path, MODULES[server])
                connection.connect(str(path))
        yield connection


def _start(path: Path, modules: Sequence[str]) -> None:
    """Start a server; it listens when this returns."""
    with (path.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, warm_server.__file__, str(path), os.environ[OWNER], *modules],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_process.environment(),
            text=True,
            start_new_session=True,  # it ends with its owner, not by a signal to the owner's group
        )
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    if said.strip() != warm_server.LISTENING:
        raise RuntimeError(f"no server of warm processes: {path.with_suffix('.log').read_text()}")
    process.returncode = 0  # it ends after us: nobody waits for it
