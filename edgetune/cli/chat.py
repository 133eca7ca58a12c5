"""`edgetune chat`: a conversation with a bundle, line by line. The work is in runtime/conversation.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import adapter_option, sampling_options
from edgetune.cli.tools import read_tools_file, tools_option
from edgetune.errors import PromptError

if TYPE_CHECKING:
    from edgetune.runtime.conversation import Conversation

TOOL = "/tool "
"""Begins a line that is a tool's result."""


@click.command("chat", epilog="Example: edgetune chat runs/quickstart/bundle")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", help="System message, in place of the bundle's own.")
@tools_option
@adapter_option
@sampling_options
def command(bundle: Path, system: str | None, tools_from: Path | None, adapter: str | None, **sampling: Any) -> None:
    """Talk with a bundle: a line in, an answer out, until /exit or Ctrl-D. /reset forgets what was said.

    /tool RESULT says what a tool gave back that the answer called. Lines may also come from a pipe or a file. Needs no
    torch and no network.
    """
    from edgetune.runtime.conversation import Conversation
    from edgetune.runtime.decoder import Decoder, check_settings

    check_settings(**sampling)
    decoder = Decoder(bundle, adapter=adapter)
    conversation = Conversation(decoder, system=system, tools=read_tools_file(tools_from))
    if sys.stdin.isatty():
        console.note(f"{decoder.bundle.name}: /reset forgets the conversation, /exit or Ctrl-D ends it")
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            conversation.reset()
            console.note("chat: the conversation is forgotten")
        elif line.startswith(TOOL):
            _answer(conversation, {"role": "tool", "content": line.removeprefix(TOOL).strip()}, sampling)
        elif line.startswith("/") and " " not in line:
            console.note(f"chat: {line}: unknown command; there are /reset and /exit, and /tool RESULT")
        elif line:
            _answer(conversation, line, sampling)


def _lines() -> Iterator[str]:
    """Stripped lines from stdin until it ends, without byte order marks; with prompt and line editing on a terminal."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  importing it gives input() its line editing
    while True:
        try:
            yield input(prompt).removeprefix("\ufeff").strip()
        except EOFError:
            if prompt:
                console.note("")
            return
        except UnicodeDecodeError:
            console.note("chat: that line is not UTF-8 text")


def _answer(conversation: Conversation, said: str | dict[str, str], sampling: dict[str, Any]) -> None:
    """Stream one answer; a message that does not fit is said and the conversation goes on."""
    dropped = conversation.dropped_turns
    try:
        result = conversation.answer(said, on_text=console.stream, **sampling)
    except PromptError as error:
        console.report_error(error)
        return
    console.say("")
    if conversation.dropped_turns > dropped:
        console.note(f"chat: the context is full; forgot {conversation.dropped_turns - dropped} of the oldest turns")
    if result.stop_reason == "length":
        console.note("chat: the answer was cut off; --max-new-tokens sets its length")
