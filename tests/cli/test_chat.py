"""`edgetune chat`: a line in, an answer out; commands; a clean end."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import LONG_S

from edgetune.cli import main
from edgetune.runtime.decoder import Decoder

SHORT = ("--max-new-tokens", "5")


def run(bundle: Path, stdin: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["chat", str(bundle), *SHORT, *arguments], input=stdin)


def test_each_line_of_a_pipe_is_answered(tiny_bundle: Path) -> None:
    decoder = Decoder(tiny_bundle)
    first = decoder.generate("turn on", max_new_tokens=5).text
    messages = [
        {"role": "user", "content": "turn on"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "turn off"},
    ]
    second = decoder.generate(messages, max_new_tokens=5).text
    result = run(tiny_bundle, "\ufeffturn on\n\n turn off \n")  # a byte order mark, as some pipes begin
    assert (result.exit_code, result.stdout) == (0, f"{first}\n{second}\n")


def test_reset_forgets_what_was_said(tiny_bundle: Path) -> None:
    alone = run(tiny_bundle, "turn off\n").stdout
    assert run(tiny_bundle, "turn on\n/reset\nturn off\n").stdout.endswith(f"\n{alone}")


def test_exit_ends_before_the_lines_that_follow(tiny_bundle: Path) -> None:
    assert run(tiny_bundle, "/exit\nturn on\n").stdout == ""


def test_an_unknown_command_is_said_and_not_answered(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, "/rest\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "/rest: unknown command; there are /reset and /exit" in result.stderr


def test_a_message_that_does_not_fit_is_said_and_the_conversation_goes_on(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, "x" * 3000 + "\nturn on\n")
    assert result.exit_code == 0
    assert "edgetune: the prompt has " in result.stderr
    assert result.stdout == run(tiny_bundle, "turn on\n").stdout


def test_forgotten_turns_are_said(tiny_bundle: Path) -> None:
    result = run(tiny_bundle, f"{'x' * 250}\n{'y' * 250}\n")
    assert "the context is full; forgot 1 of the oldest turns" in result.stderr


def test_a_bad_setting_ends_the_chat_with_exit_code_2(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, "turn on\n", "--temperature", "-1")
    assert result.exit_code == 2
    assert "temperature is -1.0" in result.stderr
    assert run(tmp_path, "turn on\n").exit_code == 2


def test_a_tools_result_is_answered_as_one(tiny_bundle: Path) -> None:
    decoder = Decoder(tiny_bundle)
    first = decoder.generate("turn on", max_new_tokens=5).text
    talk = [{"role": "user", "content": "turn on"}, {"role": "assistant", "content": first}]
    second = decoder.generate([*talk, {"role": "tool", "content": '{"ok": true}'}], max_new_tokens=5).text
    assert run(tiny_bundle, 'turn on\n/tool {"ok": true}\n').stdout == f"{first}\n{second}\n"


def test_tools_that_nothing_would_write_are_said(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"type": "function", "function": {"name": "lamp"}}]')
    result = run(tiny_bundle, "turn on\n", "--tools", str(tmp_path / "tools.json"))
    assert "tools: the chat template makes no use of this" in result.stderr
    assert result.stdout == ""


@pytest.fixture
def terminal(tiny_bundle: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A chat on a pseudo-terminal, and our end of it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgetune", "chat", str(tiny_bundle), *SHORT]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a shell's job in the background ignores Ctrl-C, and so would what it starts
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, handler)
    yield process, ours
    process.kill()
    process.communicate()
    os.close(ours)
    os.close(theirs)


def test_ctrl_c_ends_without_a_traceback(terminal: tuple[subprocess.Popen[bytes], int]) -> None:
    process, ours = terminal
    _wait_for(ours, b"> ")
    os.write(ours, b"turn on\n")
    _wait_for(ours, b"> ")
    error = _interrupt(process)
    process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert b"/exit or Ctrl-D ends it" in error
    assert b"interrupted" in error
    assert b"Traceback" not in error


def test_ctrl_d_ends_with_exit_code_0(terminal: tuple[subprocess.Popen[bytes], int]) -> None:
    process, ours = terminal
    _wait_for(ours, b"> ")
    os.write(ours, b"\x04")
    assert process.wait(timeout=LONG_S) == 0


def _interrupt(process: subprocess.Popen[bytes]) -> bytes:
    """Ctrl-C until it is noticed, and all of stderr: readline misses it between its prompt and its wait for a key."""
    assert process.stderr is not None
    error = b""
    for _ in range(LONG_S):
        process.send_signal(signal.SIGINT)
        while select.select([process.stderr], [], [], 1.0)[0]:
            piece = os.read(process.stderr.fileno(), 4096)
            if not piece:  # it has ended
                return error
            error += piece
            if b"interrupted" in error:
                return error + process.stderr.read()
    pytest.fail(f"Ctrl-C was not noticed: {error!r}")


def _wait_for(terminal: int, text: bytes) -> None:
    """Read a terminal until it shows `text`."""
    seen, end_s = b"", time.monotonic() + LONG_S
    while text not in seen:
        if time.monotonic() > end_s:
            pytest.fail(f"the terminal showed {seen!r}, not {text!r}")
        if select.select([terminal], [], [], 0.5)[0]:
            seen += os.read(terminal, 1024)
