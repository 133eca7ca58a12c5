"""`edgetune classify`: labels for texts from a bundle. The work is in runtime/classifier.py."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from edgetune.cli import console
from edgetune.cli.options import json_option
from edgetune.errors import PromptError

if TYPE_CHECKING:
    from edgetune.runtime.classifier import Classification, Classifier

MOST_LINES = 64
"""Lines from stdin that are answered together."""
READ_BYTES = 1 << 16


@click.command("classify", epilog='Example: edgetune classify runs/intents/bundle "my card has not arrived"')
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="Show that many of the likeliest labels."
)
@json_option
def command(bundle: Path, texts: tuple[str, ...], top_k: int, as_json: bool) -> None:
    """Label each TEXT with a bundle. Without TEXT, or for -, each line of stdin is one, answered as it comes.

    Prints a line for each text: label, probability and, unless there is but one TEXT, the text, with tabs between.
    The label is "unknown" where the bundle does not know; where several can apply they stand with commas between, or
    "none". --top-k adds pairs of further labels and probabilities before the text. Needs no torch and no network.
    """
    if "-" in texts and len(texts) > 1:
        raise click.UsageError("- stands for stdin and takes no other TEXT beside it")
    if not texts and sys.stdin.isatty():
        raise click.UsageError("no TEXT: give it as an argument or through a pipe")
    from edgetune.runtime.classifier import Classifier

    start_s = time.perf_counter()
    classifier = Classifier(bundle)
    load_s = time.perf_counter() - start_s
    is_stream = texts in ((), ("-",))
    results: list[dict[str, Any]] = []
    skipped = 0
    start_s = time.perf_counter()
    for batch in _batches() if is_stream else [texts]:
        asked = [text for text in batch if text.strip()] if is_stream else batch
        skipped += len(batch) - len(asked)
        answers = classifier.classify(asked, top_k=top_k)
        if as_json:
            results += [_values(text, answer) for text, answer in zip(asked, answers, strict=True)]
        elif asked:
            shown = asked if is_stream or len(asked) > 1 else [""]
            console.say("\n".join(_line(*pair, classifier) for pair in zip(shown, answers, strict=True)))
    if skipped:
        console.note(f"classify: {skipped} blank line{'s' if skipped > 1 else ''} skipped")
    if as_json:
        classify_s = time.perf_counter() - start_s
        document = {"bundle": str(bundle), "results": results, "blank_lines": skipped}
        console.say_json({**document, "load_s": load_s, "classify_s": classify_s})


def _batches() -> Iterator[Sequence[str]]:
    """Lines of stdin, byte order mark and line ends left out, as many together as came at once.

    Raises PromptError if one is not UTF-8.
    """
    number = 0
    for lines in _arrivals():
        for start in range(0, len(lines), MOST_LINES):
            batch = []
            for line in lines[start : start + MOST_LINES]:
                number += 1
                try:
                    batch.append(line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r"))
                except UnicodeDecodeError as error:
                    if batch:
                        yield batch
                    raise PromptError(f"stdin:{number}: not UTF-8 text: {error.reason}") from None
            yield batch


def _arrivals() -> Iterator[list[bytes]]:
    """The whole lines in each piece of stdin that arrives; at the end what is left."""
    rest, stdin = bytearray(), cast(io.BufferedReader, sys.stdin.buffer)
    while piece := stdin.read1(READ_BYTES):
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            yield lines
    if rest:
        yield [bytes(rest)]


def _line(text: str, answer: Classification, classifier: Classifier) -> str:
    """One text's answer as fields with tabs between; no field holds a tab or a line end."""
    if answer.is_unknown:
        label = "unknown"
    elif classifier.format.multi_label:
        label = ",".join(answer.labels) or "none"
    else:
        label = str(answer.label)
    fields = [label, f"{answer.probability:.4f}"]
    for further, probability in answer.top[1:]:
        fields += [further, f"{probability:.4f}"]
    if text:
        fields.append(text)
    return "\t".join(field.translate(_SPACES) for field in fields)


_SPACES = str.maketrans("\t\r\n", "   ")


def _values(text: str, answer: Classification) -> dict[str, Any]:
    return {
        "text": text,
        "label": answer.label,
        "labels": answer.labels,
        "probability": answer.probability,
        "is_unknown": answer.is_unknown,
        "top": [{"label": label, "probability": probability} for label, probability in answer.top],
    }
