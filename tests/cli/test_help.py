"""What holds for every verb: an example in its help, options written with - or _, one line for what goes wrong."""

from __future__ import annotations

import signal

import pytest
from click.testing import CliRunner

from edgetune.cli import main


@pytest.mark.parametrize("verb", [None, *main.commands])
def test_every_help_shows_an_example_that_its_own_options_accept(verb: str | None) -> None:
    result = CliRunner().invoke(main, [verb, "--help"] if verb else ["--help"])
    assert result.exit_code == 0
    example = " ".join(result.stdout.partition("Example: ")[2].split())
    assert example.startswith(f"edgetune {verb or ''}".strip())
    command = main.commands[verb or "run"]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in example.split() if word.startswith("--")} <= known


@pytest.mark.parametrize("verb", main.commands)
def test_an_unknown_option_is_exit_code_2(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "--no-such-option"])
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 4),
        (OSError(28, "No space left on device"), 2),
        (KeyboardInterrupt(), 130),
        (signal.SIGTERM, 143),
        (ZeroDivisionError("zero"), 1),
    ],
)
def test_whatever_happens_becomes_one_line_and_an_exit_code(error, code, monkeypatch, tmp_path) -> None:
    def fail(*_, **__):
        if isinstance(error, signal.Signals):
            signal.raise_signal(error)
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main.commands["plan"], "callback", fail)
    result = CliRunner().invoke(main, ["plan", "a.toml"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().startswith("edgetune: ")
    assert result.stderr.strip().count("\n") == 0
    assert len(list(tmp_path.glob("edgetune-bug-*.txt"))) == (code == 1)
