"""The command line: one thin module per verb, one error boundary. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from edgetune import __version__
from edgetune.cli import (
    adapt,
    bench,
    chat,
    classify,
    compare,
    console,
    evaluate,
    export,
    export_adapter,
    export_best,
    generate,
    merge,
    plan,
    push,
    report,
    run,
    train,
    tune,
    verify,
)
from edgetune.cli.extras import missing_extra
from edgetune.cli.jointly import is_left_to_main
from edgetune.errors import EdgeTuneError, OutOfMemoryError, RunError, shown
from edgetune.launch import launched


def _accept_underscores(name: str) -> str:
    return name.replace("_", "-")


class _Terminated(BaseException):
    """SIGTERM outside the training loop: the stages clean up behind themselves, as they do for Ctrl-C."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside the block SIGTERM raises _Terminated, where this is the main thread and nobody else handles it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise _Terminated

    try:
        before = signal.getsignal(signal.SIGTERM)
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more, as after `| head`. In place of BrokenPipeError, which click makes exit code 1."""


def _known(error: OSError) -> RunError | None:
    """What to tell of an error of the system that is nobody's bug; None if it may be one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the output cannot be written: {error.strerror}", cure="free some space")
    if error.errno == errno.ENAMETOOLONG:
        return RunError(f"{shown(error.filename)}: no path can be that long", cure="give a shorter one")
    return None


class _Group(click.Group):
    """Verbs in the order of the flow, and the error boundary of the whole program."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGoneError from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The verb. Most are the main process's alone: then the others that a launcher started are done."""
        name, command, rest = super().resolve_command(ctx, args)
        if is_left_to_main(name or ""):
            ctx.exit()
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a verb; every outcome becomes an exit code, none a traceback."""
        kwargs["standalone_mode"] = False
        told = {console.RUN: Path()}  # until the verb says where it works, through console.work_in
        kwargs["obj"] = told
        if sys.stdin is None:  # closed by whoever started us; reads as empty
            sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  it stays open as stdin does
        try:
            with _sigterm_raises():
                code = super().main(*args, **kwargs)
        except EdgeTuneError as error:
            code = console.report_error(error)
        except click.exceptions.Abort:
            console.note("edgetune: interrupted")
            code = 130
        except _Terminated:
            console.note("edgetune: terminated")
            code = 143
        except click.ClickException as error:
            if launched().local_rank == 0:  # its fellows have been asked the same
                error.show()
            code = error.exit_code
        except _ReaderGoneError:
            with contextlib.suppress(OSError, ValueError):  # or Python complains when it flushes what is left
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except ModuleNotFoundError as error:
            missing = missing_extra(error)
            code = console.report_error(missing) if missing else console.report_bug(error, told[console.RUN])
        except MemoryError:
            code = console.report_error(
                OutOfMemoryError("memory ran out", cure="close other programs, or ask for less")
            )
        except OSError as error:
            known = _known(error)
            code = console.report_error(known) if known else console.report_bug(error, told[console.RUN])
        except Exception as error:  # the one place where everything unforeseen ends
            code = console.report_bug(error, told[console.RUN])
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _accept_underscores},
    epilog="Example: edgetune run recipes/quickstart.toml",
)
@click.version_option(__version__, prog_name="edgetune")
def main() -> None:
    """Fine-tune on a 4-bit base, carry the result to int4 ONNX, and prove that nothing was lost."""


for _module in (
    run,
    plan,
    train,
    tune,
    adapt,
    merge,
    export,
    export_best,
    export_adapter,
    verify,
    evaluate,
    bench,
    compare,
    report,
    push,
    generate,
    chat,
    classify,
):
    main.add_command(_module.command)
