"""`edgetune generate`: the answer on stdout, all else on stderr, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import LONG_S

from edgetune.cli import main
from edgetune.runtime.decoder import Decoder

PROMPT = "turn on the lamp"


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, arguments)], input=stdin)


@pytest.fixture(scope="module")
def answer(tiny_bundle: Path) -> str:
    return Decoder(tiny_bundle).generate(PROMPT, max_new_tokens=8).text


def test_the_answer_is_all_there_is_on_stdout(tiny_bundle: Path, answer: str) -> None:
    result = run(tiny_bundle, PROMPT, "--max-new-tokens", 8)
    assert (result.exit_code, result.stdout, result.stderr) == (0, answer + "\n", "")


@pytest.mark.parametrize("arguments", [["-"], []])
def test_the_prompt_may_come_through_a_pipe(tiny_bundle: Path, answer: str, arguments: list[str]) -> None:
    for text in (f"{PROMPT}\n", f"\ufeff{PROMPT}\r\n"):  # as some pipes of Windows begin
        assert run(tiny_bundle, *arguments, "--max-new-tokens", 8, stdin=text).stdout == answer + "\n"


def test_options_may_be_written_with_underscores(tiny_bundle: Path, answer: str) -> None:
    assert run(tiny_bundle, PROMPT, "--max_new_tokens", 8).stdout == answer + "\n"


def test_json_is_one_document_with_counts_and_timings(tiny_bundle: Path, answer: str) -> None:
    values = json.loads(run(tiny_bundle, PROMPT, "--json", "--max-new-tokens", 8).stdout)
    assert values["text"] == answer
    assert values["new_tokens"] == len(values["token_ids"]) == 8
    assert values["stop_reason"] == "length"
    assert values["prefill_s"] > 0
    assert values["tokens_per_s"] > 0
    assert values["load_s"] > 0


def test_raw_text_and_a_system_message_change_the_prompt(tiny_bundle: Path) -> None:
    counts = [
        json.loads(run(tiny_bundle, PROMPT, "--json", "--max-new-tokens", 1, *more).stdout)["prompt_tokens"]
        for more in (["--raw"], [], ["--system", "Be brief."])
    ]
    assert counts == sorted(set(counts))


def test_the_seed_decides_what_is_sampled(tiny_bundle: Path) -> None:
    texts = [
        run(tiny_bundle, PROMPT, "--temperature", 2, "--max-new-tokens", 20, "--seed", seed).stdout for seed in "112"
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "edgetune: the prompt is empty\n"),
        ([PROMPT, "--temperature", "-1"], "edgetune: temperature is -1.0, must be 0"),
        ([PROMPT, "--top-p", "2"], "edgetune: top_p is 2.0, must be above 0 and at most 1"),
        ([PROMPT * 200], "edgetune: the prompt has "),
        ([PROMPT, "--max-new-tokens", "many"], "is not a valid integer"),
        ([PROMPT, "--raw", "--system", "s"], "--raw takes no --system"),
    ],
)
def test_bad_input_is_said_on_stderr_with_exit_code_2(tiny_bundle: Path, arguments: list[str], message: str) -> None:
    result = run(tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_bytes_that_are_no_text_are_refused(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, stdin=b"turn \xff on")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "stdin: not UTF-8 text: invalid start byte at byte 5" in result.stderr


def test_a_folder_that_is_no_bundle_is_called_by_its_name(tiny_base: Path, tmp_path: Path) -> None:
    result = run(tiny_base, PROMPT)
    assert result.exit_code == 2
    assert "is a Hugging Face model folder, not a bundle; `edgetune export` makes a bundle of it" in result.stderr
    assert "no such bundle" in run(tmp_path / "nowhere", PROMPT).stderr


def test_a_missing_runtime_library_is_exit_code_3(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    result = run(tiny_bundle, PROMPT)
    assert result.exit_code == 3
    assert 'pip install "onnxruntime-genai' in result.stderr


def test_a_reader_that_stops_listening_is_no_error(tiny_bundle: Path) -> None:
    command = f"{sys.executable} -m edgetune generate {tiny_bundle} 'turn on' --max-new-tokens 200 | head -c 1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, timeout=LONG_S, check=True)
    assert finished.stderr == b""
    assert len(finished.stdout) == 1


def test_a_reader_that_never_listened_is_no_error(tiny_bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "edgetune", "generate", str(tiny_bundle), "turn on"]
    finished = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=LONG_S, check=False)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's way to close stdin")
def test_a_closed_stdin_reads_as_empty(tiny_bundle: Path) -> None:
    command = f"{sys.executable} -m edgetune generate {tiny_bundle} <&-"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, timeout=LONG_S, check=False)
    assert (finished.returncode, finished.stderr) == (2, b"edgetune: the prompt is empty\n")
