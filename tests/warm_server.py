"""A process that has imported what others need, and forks one for each that is asked for.

`python warm_server.py SOCKET OWNER MODULES...` listens at the socket as long as that is there and the process OWNER
lives. Who connects sends stdin, stdout and stderr and a line of JSON, see `Request`, and is told the new process's id
and its exit code, a line each. Standard library only, beside MODULES.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn, TypedDict

WATCH_S = 1.0
"""How often it is seen whether the owner is alive."""
LISTENING = "listening"


class Request(TypedDict):
    """What to run, and where it stands."""

    command: list[str]
    """What would follow `python`: -m and a module, or a script and its arguments."""
    environment: dict[str, str]
    folder: str
    cores: list[int] | None


def main(path: str, owner: str, *modules: str) -> None:
    """Serve; `modules` are imported before, and of "module:function" the function is called."""
    for module, _, function in (name.partition(":") for name in modules):
        loaded = importlib.import_module(module)
        if function:
            getattr(loaded, function)()
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(WATCH_S)
        print(LISTENING, flush=True)
        os.dup2(2, 1)
        while Path(path).exists() and _is_alive(int(owner)):
            _bury()
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    if os.fork() == 0:
                        listener.close()
                        _answer(connection)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _bury() -> None:
    """Let go of the processes that have answered."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(connection: socket.socket) -> NoReturn:
    """In a process of its own: fork the one that is asked for, and tell how it ends."""
    try:
        _, ends, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("r", encoding="utf-8") as lines:
            request: Request = json.loads(lines.readline())
        process = os.fork()
        if process == 0:
            connection.close()
            _become(request, ends)
        for end in ends:
            os.close(end)
        connection.sendall(b"%d\n" % process)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(b"%d\n" % code)
    except OSError:  # nobody listens any more
        os._exit(0)
    finally:
        os._exit(1)


def _become(request: Request, ends: list[int]) -> NoReturn:
    """Stand where a fresh process would, run what is asked for, and end as `python` does."""
    for number, end in enumerate(ends):
        os.dup2(end, number)
        os.close(end)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["cores"] is not None:
        os.sched_setaffinity(0, request["cores"])
    code = _run(request["command"])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(command: list[str]) -> int:
    """The exit code of a module's main or of a script."""
    try:
        if command[0] == "-m":
            sys.exit(importlib.import_module(command[1]).main())
        sys.argv[:] = command
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code: Any = end.code
        if code is None or isinstance(code, int):
            return code or 0
        print(code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # the tests' modules stand in for nobody's
    main(*sys.argv[1:])
