"""`edgetune generate`: one answer from a bundle. The work is in runtime/decoder.py."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import adapter_option, json_option, sampling_options
from edgetune.errors import PromptError

if TYPE_CHECKING:
    from edgetune.runtime.decoder import Decoder


@click.command("generate", epilog='Example: edgetune generate runs/quickstart/bundle "turn on the lamp in the kitchen"')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--system", help="System message, in place of the bundle's own.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@adapter_option
@sampling_options
@json_option
def command(
    bundle: Path, text: str | None, system: str | None, raw: bool, adapter: str | None, as_json: bool, **sampling: Any
) -> None:
    """Answer TEXT with a bundle; the answer streams to stdout. Without TEXT, or for -, it is read from stdin.

    Needs no torch and no network.
    """
    if raw and system is not None:
        raise click.UsageError("--raw takes no --system: nothing renders it")
    if text is None and sys.stdin.isatty():
        raise click.UsageError("no TEXT: give it as an argument or through a pipe")
    from edgetune.runtime.decoder import Decoder

    prompt = _read_stdin() if text in (None, "-") else text
    start_s = time.perf_counter()
    decoder = Decoder(bundle, adapter=adapter)
    load_s = time.perf_counter() - start_s
    on_text = None if as_json else console.stream
    result = decoder.generate(_prompt(decoder, prompt, system=system, raw=raw), on_text=on_text, **sampling)
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


def _prompt(decoder: Decoder, text: str, *, system: str | None, raw: bool) -> Any:
    if raw:
        return decoder.prompter.text_ids(text)
    if system is not None:
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return text
