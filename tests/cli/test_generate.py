"""`edgetune generate`: the answer on stdout, all else on stderr, no traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import LONG_S

from edgetune.cli import main
from edgetune.runtime.bundle import open_bundle, write_manifest
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
        ([PROMPT, "--raw", "--tools", "t.json"], "--raw takes no --system, --tools or --messages"),
        ([PROMPT, "--messages", "m.json"], "--messages takes no TEXT and no --system"),
    ],
)
def test_bad_input_is_said_on_stderr_with_exit_code_2(tiny_bundle: Path, arguments: list[str], message: str) -> None:
    result = run(tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


CONVERSATION = [{"role": "user", "content": "turn on"}, {"role": "assistant", "content": "ok"}]
CONVERSATION += [{"role": "user", "content": PROMPT}]
TOOLS = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}]
TOOLS_WRITTEN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


@pytest.fixture
def tool_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """`tiny_bundle` with a chat template that writes tools."""
    bundle = open_bundle(tiny_bundle)
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    chat = dataclasses.replace(bundle.chat_format, template=TOOLS_WRITTEN)
    return write_manifest(dataclasses.replace(bundle, path=folder, chat=chat)).path


def test_a_conversation_comes_from_a_file_or_a_pipe(tiny_bundle: Path, tmp_path: Path) -> None:
    wanted = Decoder(tiny_bundle).generate(CONVERSATION, max_new_tokens=8).text + "\n"
    text = json.dumps(CONVERSATION)
    (tmp_path / "talk.json").write_text(text)
    assert run(tiny_bundle, "--messages", tmp_path / "talk.json", "--max-new-tokens", 8).stdout == wanted
    assert run(tiny_bundle, "--messages", "-", "--max-new-tokens", 8, stdin=text).stdout == wanted


def test_tools_are_written_into_the_prompt(tool_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "row.json").write_text(json.dumps({"messages": CONVERSATION, "tools": TOOLS}))
    decoder = Decoder(tool_bundle)
    for prompt, arguments in ((PROMPT, [PROMPT, "--tools", "tools.json"]), (CONVERSATION, ["--messages", "row.json"])):
        arguments = [*arguments[:-1], tmp_path / arguments[-1]]
        wanted = decoder.generate(prompt, tools=TOOLS, max_new_tokens=1)
        values = json.loads(run(tool_bundle, *arguments, "--json", "--max-new-tokens", 1).stdout)
        assert (values["text"], values["prompt_tokens"]) == (wanted.text, wanted.prompt_tokens)


@pytest.mark.parametrize(
    ("text", "option", "complaint"),
    [
        ("[", "--tools", "file.json: is no JSON: "),
        ("[]", "--tools", "file.json: holds no tools; leave --tools out"),
        ('["lamp"]', "--tools", "file.json: tools must be a list of JSON schemas"),
        (None, "--tools", "file.json: cannot be read: No such file or directory"),
        ('{"role": "user"}', "--messages", "file.json: holds no messages"),
        ('[{"role": "robot", "content": "a"}]', "--messages", "message 1: unknown role 'robot'"),
        (json.dumps(TOOLS), "--tools", "tools: the chat template makes no use of this"),
    ],
)
def test_tools_and_messages_that_cannot_be_used_are_said_in_one_line(
    tiny_bundle: Path, tmp_path: Path, text: str | None, option: str, complaint: str
) -> None:
    if text is not None:
        (tmp_path / "file.json").write_text(text)
    asked = [PROMPT] if option == "--tools" else []
    result = run(tiny_bundle, *asked, option, tmp_path / "file.json")
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


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
