"""Which of benchmarks/results still say what this tree does: `make benchmark-check`.

A result is sound when it names a commit of this history, was written by its script alone (as far as git can tell), and
when nothing that it measures has changed since that commit. What a result measures is the table below.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

REPOSITORY = Path(__file__).parent.parent
RESULTS = "benchmarks/results"
TRAINING = ("edgetune/data", "edgetune/lora", "edgetune/model", "edgetune/train")
BUNDLE = ("edgetune/bundle", "edgetune/export", "edgetune/quantize")
SCORES = ("edgetune/evaluate",)
RUNTIME = ("edgetune/runtime",)
RUN = (*TRAINING, *BUNDLE, *SCORES, *RUNTIME)
MEASURES: Mapping[str, tuple[str, ...]] = {
    "agree": (*BUNDLE, *SCORES, *RUNTIME),
    "banking77": (*RUN, "recipes/minilm-banking77.toml"),
    "busy": ("edgetune/threads.py", "edgetune/train", *RUNTIME),
    "classify_throughput": TRAINING,
    "decode": ("edgetune/export", "edgetune/quantize", *RUNTIME),
    "decode_nano": ("edgetune/export", "edgetune/quantize", *RUNTIME),
    "encoder_speed": ("edgetune/export", "edgetune/quantize", *RUNTIME),
    "fused_loss": ("edgetune/train",),
    "gpu": TRAINING,
    "gpu_run": (*RUN, "recipes/quickstart.toml"),
    "int4_loss": ("edgetune/quantize",),
    "keep_adapter": ("edgetune/bundle", "edgetune/export", "edgetune/quantize", *RUNTIME),
    "methods": ("edgetune/quantize",),
    "nano-snips": (*RUN, "recipes/nano-snips.toml"),
    "page": ("edgetune/report",),
    "planner": ("edgetune/model", "edgetune/train"),
    "quickstart": (*RUN, "recipes/quickstart.toml"),
    "repair": ("edgetune/bundle", "edgetune/quantize", "edgetune/evaluate"),
    "side_by_side": TRAINING,
    "sms_spam": RUN,
    "snips_tries": (*TRAINING, "recipes/nano-snips.toml"),
    "stages": (*RUN, "recipes/quickstart.toml"),
    "survival": (*BUNDLE, *SCORES, *RUNTIME),
    "train_throughput": TRAINING,
    "tune": ("edgetune/tune", "edgetune/train"),
}
"""Result -> the parts of the tree whose change makes it old."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a result; nothing where it is sound."""

    name: str
    commit: str | None
    """As its provenance names it."""
    origin: tuple[str, ...]
    """Why it cannot be told that its script alone has written it, at a commit of this history."""
    changed: tuple[str, ...]
    """Parts that it measures and that have changed since its commit."""

    @property
    def problems(self) -> str:
        """All of it in a line; "" for a sound result."""
        return "; ".join((*self.origin, *([f"changed since: {', '.join(self.changed)}"] if self.changed else [])))


@click.command()
def main() -> None:
    """Say of each result whether it is sound; exit 1 if one is not."""
    found = check(REPOSITORY)
    for item in found:
        click.echo(f"{item.name:20} {(item.commit or '-')[:7]:8} {item.problems or 'sound'}")
    if unsound := sum(bool(item.problems) for item in found):
        raise click.ClickException(f"{unsound} of {len(found)} results are not sound; make benchmark measures again")


def check(repository: Path, measures: Mapping[str, Sequence[str]] = MEASURES) -> list[Finding]:
    """A finding for each JSON file of the results, by name; `measures` as MEASURES."""
    found = []
    for file in sorted((repository / RESULTS).glob("*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        commit = commit_of(report)
        origin = (*_commit_problems(repository, commit), *_origin_problems(repository, file.stem, report, measures))
        changed = changed_since(repository, commit, measures.get(file.stem, ()))
        found.append(Finding(file.stem, commit, origin, changed))
    return found


def old_lines(repository: Path = REPOSITORY) -> dict[str, str]:
    """Result -> what a page says below its table, for each that is older than what it measures or names no commit."""
    lines = {}
    for file in sorted((repository / RESULTS).glob("*.json")):
        commit = commit_of(json.loads(file.read_text(encoding="utf-8")))
        if not _is_in_history(repository, commit):
            lines[file.stem] = "measured at no commit of this history."
        elif changed_since(repository, commit, MEASURES.get(file.stem, ())):
            lines[file.stem] = f"measured at commit {str(commit)[:7]}; parts that it measures have changed since."
    return lines


def commit_of(report: Mapping[str, Any]) -> str | None:
    """The commit that a result names, "+" after it where the tree had changes that are in no commit."""
    found = report.get("provenance")
    commit = found.get("commit") if isinstance(found, Mapping) else None
    return commit if isinstance(commit, str) else None


def changed_since(repository: Path, commit: str | None, parts: Sequence[str]) -> tuple[str, ...]:
    """Those of `parts` that commits after this one, or the tree as it lies there, have changed; () for a commit that is
    not in this history.
    """
    if not _is_in_history(repository, commit):
        return ()
    since = str(commit).rstrip("+")
    return tuple(part for part in parts if _git(repository, "diff", "--quiet", since, "--", part) is None)


def _commit_problems(repository: Path, commit: str | None) -> Iterator[str]:
    if commit is None:
        yield "names no commit"
    elif not _is_in_history(repository, commit):
        yield "its commit is not in this history"
    elif commit.endswith("+"):
        yield "the tree had changes that are in no commit"


def _origin_problems(
    repository: Path, name: str, report: Mapping[str, Any], measures: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Why its script alone may not have written it; and whether anybody says what it measures."""
    if name not in measures:
        yield "MEASURES in benchmarks/check.py does not say what it measures"
    found = report.get("provenance")
    command = found.get("command") if isinstance(found, Mapping) else None
    if not (isinstance(command, list) and command):
        yield "names no command"
    elif (said := _command_problem(repository, name, list(map(str, command)))) is not None:
        yield said
    if isinstance(found, Mapping) and _was_edited(repository, f"{RESULTS}/{name}.json", report):
        yield "was edited after its script had written it"


def _command_problem(repository: Path, name: str, command: Sequence[str]) -> str | None:
    """Why a command cannot have written results/NAME.json: no script of benchmarks/, no recipe, another file."""
    program, *arguments = command
    if arguments[:1] == ["run"] and Path(program).name in ("edgetune", "__main__.py"):
        recipe = repository / "recipes" / f"{name}.toml"
        ran = Path(arguments[1]).name if len(arguments) > 1 else ""
        return None if recipe.is_file() and ran == recipe.name else f"its command runs no recipes/{name}.toml"
    if not program.endswith(".py") or not (repository / "benchmarks" / program).is_file():
        return f"its command, {program}, is no script of benchmarks"
    out = [value for option, value in itertools.pairwise(arguments) if option == "--out"]
    if out and Path(out[-1]).name != f"{name}.json":
        return f"its command writes {Path(out[-1]).name}"
    return None


def _was_edited(repository: Path, path: str, report: Mapping[str, Any]) -> bool:
    """Whether a commit holds another content under the same provenance: one of the two was written by hand."""
    commits = (_git(repository, "log", "--format=%H", "--", path) or "").split()
    for commit in commits:
        text = _git(repository, "show", f"{commit}:{path}")
        if text is None:
            continue  # the commit that took it away
        before = json.loads(text)
        if before.get("provenance") != report["provenance"]:
            return False
        if before != report:
            return True
    return False


def _is_in_history(repository: Path, commit: str | None) -> bool:
    if commit is None:
        return False
    return _git(repository, "merge-base", "--is-ancestor", commit.rstrip("+"), "HEAD") is not None


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says; None where it exits with anything but 0."""
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    main()
