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


@pytest.mark.parametrize("name", ["x" * 5_000, "y/" * 2_500])
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "NAME"),
        ("run", "a.toml", "--out", "NAME"),
        ("plan", "NAME"),
        ("plan", "a.toml", "--set", "model.base=NAME"),
        ("plan", "a.toml", "--set", "data.train=NAME"),
        ("train", "NAME"),
        ("train", "a.toml", "--out", "NAME"),
        ("merge", "NAME"),
        ("export", "NAME"),
        ("export-best", "NAME"),
        ("export-adapter", "NAME"),
        ("evaluate", "NAME"),
        ("evaluate", "NAME", "--data", "a.jsonl"),
        ("compare", "NAME", "a.toml"),
        ("bench", "NAME"),
        ("report", "NAME"),
        ("report", "a.toml", "--out", "NAME.html"),
        ("generate", "NAME", "a"),
        ("chat", "NAME"),
        ("classify", "NAME", "a"),
    ],
)
def test_a_path_of_thousands_of_characters_is_one_line(arguments, name, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('[model]\nbase = "edgetune:nano"\n[data]\ntrain = "edgetune:home"\n')
    result = CliRunner().invoke(main, [argument.replace("NAME", name) for argument in arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("edgetune: ")
    assert result.stderr.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["a.toml"]
