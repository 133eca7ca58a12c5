"""`edgetune classify`: one line for each text on stdout, all else on stderr, no traceback."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import LONG_S

from edgetune.cli import main
from edgetune.runtime.bundle import open_bundle, write_manifest


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["classify", *map(str, arguments)], input=stdin)


@pytest.fixture
def with_format(word_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle with other values in its classifier format."""

    def make(**changes: object) -> Path:
        bundle = open_bundle(shutil.copytree(word_bundle, tmp_path / "copy"))
        changed = dataclasses.replace(bundle.classifier_format, **changes)  # type: ignore[arg-type]
        return write_manifest(dataclasses.replace(bundle, classifier=changed)).path

    return make


def test_one_text_gives_its_label_and_probability(word_bundle: Path) -> None:
    result = run(word_bundle, "my card has not arrived")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "card\t0.9993\n", "")


def test_several_texts_stand_behind_their_labels(word_bundle: Path) -> None:
    assert run(word_bundle, "my card", "tab\tand\nline: money").stdout == (
        "card\t0.9993\tmy card\nmoney\t0.9993\ttab and line: money\n"
    )


@pytest.mark.parametrize("arguments", [["-"], []])
def test_lines_come_from_stdin_and_blank_ones_are_counted(word_bundle: Path, arguments: list[str]) -> None:
    result = run(word_bundle, *arguments, stdin="my card\r\n\n \nthe weather")
    assert (result.exit_code, result.stdout) == (0, "card\t0.9993\tmy card\nweather\t0.9993\tthe weather\n")
    assert result.stderr == "classify: 2 blank lines skipped\n"


def test_an_empty_stdin_is_an_empty_answer(word_bundle: Path) -> None:
    result = run(word_bundle, stdin="")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_many_lines_are_answered_in_their_order(word_bundle: Path) -> None:
    lines = ["card", "money", "weather and more of it"] * 5000  # more than one piece of the pipe, and many batches
    out = run(word_bundle, stdin="\n".join(lines) + "\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in out] == [line.split()[0] for line in lines]


def test_lines_are_answered_while_more_are_to_come(word_bundle: Path) -> None:
    command = [sys.executable, "-m", "edgetune", "classify", str(word_bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line, label in ((b"my card\nmon", b"card"), (b"ey\n", b"money")):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().startswith(label + b"\t0.9993\t")
        out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, b"", b"")


def test_a_byte_order_mark_is_no_part_of_the_first_text(word_bundle: Path) -> None:
    marked, plain = (json.loads(run(word_bundle, "--json", stdin=text).stdout) for text in ("\ufeffcard\n", "card\n"))
    assert marked["results"] == plain["results"]


def test_top_k_adds_further_labels_before_the_text(word_bundle: Path) -> None:
    assert run(word_bundle, "card card money", "--top-k", 2).stdout == "card\t0.9997\tmoney\t0.0003\n"
    assert run(word_bundle, "-", "--top_k", 2, stdin="card card money\n").stdout == (
        "card\t0.9997\tmoney\t0.0003\tcard card money\n"
    )


def test_what_the_bundle_does_not_know_is_unknown(with_format: Callable[..., Path]) -> None:
    assert run(with_format(threshold=0.5), "something else").stdout == "unknown\t0.3333\n"


def test_labels_that_can_apply_together_stand_in_one_field(with_format: Callable[..., Path]) -> None:
    bundle = with_format(multi_label=True, labels=("card", "money", "weather, a\ttab"))
    assert run(bundle, "money").stdout == "money,card,weather, a tab\t0.9997\n"


def test_json_is_one_document_with_all_texts(word_bundle: Path) -> None:
    values = json.loads(run(word_bundle, "--json", "--top-k", 2, stdin="my card\n\nmoney\n").stdout)
    assert values["bundle"] == str(word_bundle)
    assert values["blank_lines"] == 1
    assert values["load_s"] > 0
    assert values["classify_s"] > 0
    first, second = values["results"]
    assert first["text"] == "my card"
    assert (first["label"], first["labels"], first["is_unknown"]) == ("card", ["card"], False)
    assert [item["label"] for item in first["top"]] == ["card", "money"]
    assert first["top"][0]["probability"] == first["probability"] == pytest.approx(0.99933, abs=1e-5)
    assert second["label"] == "money"


def test_json_of_what_is_unknown_has_no_label(with_format: Callable[..., Path]) -> None:
    (answer,) = json.loads(run(with_format(threshold=0.5), "--json", "else").stdout)["results"]
    assert (answer["label"], answer["labels"], answer["is_unknown"]) == (None, [], True)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([""], None, "edgetune: the text is empty\n"),
        (["card", " "], None, "edgetune: the text is empty\n"),
        (["card", "--top-k", "0"], None, "0 is not in the range x>=1"),
        (["card", "-"], "money\n", "- stands for stdin and takes no other TEXT beside it"),
        ([], b"\xff\n", "edgetune: stdin:1: not UTF-8 text: invalid start byte\n"),
    ],
)
def test_bad_input_is_said_on_stderr_with_exit_code_2(
    word_bundle: Path, arguments: list[str], stdin: str | bytes | None, message: str
) -> None:
    result = run(word_bundle, *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_lines_before_one_that_is_no_text_are_answered(word_bundle: Path) -> None:
    result = run(word_bundle, stdin=b"card\nmoney\n\xff\nweather\n")
    assert result.exit_code == 2
    assert result.stdout == "card\t0.9993\tcard\nmoney\t0.9993\tmoney\n"
    assert "stdin:3: not UTF-8" in result.stderr


def test_the_other_kind_of_bundle_is_refused_with_the_verb_that_runs_it(word_bundle: Path, tiny_bundle: Path) -> None:
    result = run(tiny_bundle, "card")
    assert result.exit_code == 2
    assert "has no labels; use `edgetune generate`" in result.stderr
    for verb in ("generate", "chat"):
        result = CliRunner().invoke(main, [verb, str(word_bundle)], input="card\n")
        assert result.exit_code == 2
        assert "is a classifier, it writes no text; use `edgetune classify`" in result.stderr


def test_a_reader_that_stops_listening_is_no_error(word_bundle: Path) -> None:
    command = f"yes card | {sys.executable} -m edgetune classify {word_bundle} | head -n 1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, timeout=LONG_S, check=True)
    assert finished.stdout == b"card\t0.9993\tcard\n"
    assert finished.stderr.replace(b"yes: standard output: Broken pipe\n", b"") == b""
