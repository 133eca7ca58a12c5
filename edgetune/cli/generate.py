"""`edgetune generate`: one answer from a bundle. The work is in runtime/decoder.py."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import click

from edgetune.cli import console
from edgetune.cli.options import adapter_option, json_option, sampling_options
from edgetune.cli.tools import read_json_text, read_text, read_tools_file, tools_option
from edgetune.errors import PromptError


@click.command("generate", epilog='Example: edgetune generate runs/quickstart/bundle "turn on the lamp in the kitchen"')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--system", help="System message, in place of the bundle's own.")
@tools_option
@click.option(
    "--messages",
    "messages_from",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON of a conversation in place of TEXT, as OpenAI's chat has it: a list of messages, or "
    '{"messages": [...], "tools": [...]}. - is stdin.',
)
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@adapter_option
@sampling_options
@json_option
def command(
    bundle: Path,
    *,
    text: str | None,
    system: str | None,
    tools_from: Path | None,
    messages_from: Path | None,
    raw: bool,
    adapter: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer TEXT with a bundle; the answer streams to stdout. Without TEXT, or for -, it is read from stdin.

    Needs no torch and no network.
    """
    if raw and (system is not None or tools_from is not None or messages_from is not None):
        raise click.UsageError("--raw takes no --system, --tools or --messages: nothing renders them")
    if messages_from is not None and (text is not None or system is not None):
        raise click.UsageError("--messages takes no TEXT and no --system: they are messages of it")
    if text is None and messages_from is None and sys.stdin.isatty():
        raise click.UsageError("no TEXT: give it as an argument or through a pipe")
    from edgetune.runtime.decoder import Decoder

    tools = read_tools_file(tools_from)
    if messages_from is not None:
        prompt, tools = _conversation(messages_from, tools)
    else:
        prompt = _messages(_read_stdin() if text in (None, "-") else str(text), system=system)
    start_s = time.perf_counter()
    decoder = Decoder(bundle, adapter=adapter)
    load_s = time.perf_counter() - start_s
    on_text = None if as_json else console.stream
    asked = decoder.prompter.text_ids(str(prompt)) if raw else prompt
    result = decoder.generate(asked, tools=tools, on_text=on_text, **sampling)
    if not as_json:
        console.say("")
        return
    values = dataclasses.asdict(result)
    console.say_json(
        {
            "bundle": str(bundle),
            "adapter": decoder.bundle.adapter,
            **values,
            "new_tokens": len(result.token_ids),
            "tokens_per_s": round(result.tokens_per_s, 1),
            "load_s": load_s,
            **sampling,
        }
    )


def _read_stdin() -> str:
    """All of stdin as text, byte order mark and last line end left out. Raises PromptError if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _messages(text: str, *, system: str | None) -> Any:
    if system is not None:
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return text


def _conversation(file: Path, tools: Any) -> tuple[Any, Any]:
    """The messages in a file, and its tools or else those given. Raises PromptError."""
    found = read_json_text(_read_stdin() if str(file) == "-" else read_text(file), str(file))
    row = found if isinstance(found, dict) else {"messages": found}
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"{file}: holds no messages", cure='write [{"role": "user", "content": ...}, ...]')
    return messages, row.get("tools") or tools
