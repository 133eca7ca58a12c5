"""--tools: the JSON schemas of what an answer may call, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgetune.errors import PromptError

tools_option = click.option(
    "--tools",
    "tools_from",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON list of the tools that the answer may call, as OpenAI's chat has them; the chat template writes them.",
)


def read_tools_file(file: Path | None) -> list[dict[str, Any]] | None:
    """The tools in a file; None without one. Raises PromptError."""
    if file is None:
        return None
    from edgetune.runtime.messages import read_tools

    try:
        tools = read_tools(read_json_text(read_text(file), str(file)))
    except PromptError as error:
        where = "" if error.message.startswith(str(file)) else f"{file}: "
        raise PromptError(f"{where}{error.message}", cure=error.cure) from None
    if not tools:
        raise PromptError(f"{file}: holds no tools", cure="leave --tools out")
    return tools


def read_text(file: Path) -> str:
    """A file's text. Raises PromptError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PromptError(f"{file}: cannot be read: {reason}", cure="give a JSON file") from None


def read_json_text(text: str, where: str) -> Any:
    """What a JSON text holds. Raises PromptError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: is no JSON: {error}", cure="write a JSON list") from None
