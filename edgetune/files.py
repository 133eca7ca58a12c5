"""Files and folders that are whole or not there: atomic writes, JSON, and an OSError said as one clear RunError."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import EdgeTuneError, RunError


def read_text(path: Path, kind: type[EdgeTuneError] = RunError, *, cure: str = "") -> str:
    """The text of a file in UTF-8. Raises an error of that kind if it is missing or no such text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise kind(f"{path}: no such file", cure=cure) from None
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}", cure=cure) from None
    except ValueError as error:
        raise kind(f"{path}: cannot be read: {error}", cure=cure) from None


def read_json(path: Path, kind: type[EdgeTuneError] = RunError, *, cure: str = "") -> dict[str, Any]:
    """A JSON object from a file. Raises an error of that kind if it is missing or damaged."""
    text = read_text(path, kind, cure=cure)
    try:
        value = json.loads(text)
    except RecursionError:
        raise kind(f"{path}: cannot be read: nested too deeply", cure=cure) from None
    except ValueError as error:
        raise kind(f"{path}: cannot be read: {error}", cure=cure) from None
    if not isinstance(value, dict):
        raise kind(f"{path}: holds no JSON object", cure=cure)
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, whole. Raises RunError."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise write_error(path, error) from None
    try:
        temporary.chmod(0o755)
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync(item)
        _replace_folder(temporary, path)
    except OSError as error:
        raise write_error(path, error) from None
    except Exception as error:
        if full := _full_disk(error):  # libraries that write have errors of their own
            raise write_error(path, full) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def open_for_user(path: Path, mode: str) -> Iterator[Any]:
    """Open a text file of the run; an OSError while writing becomes a RunError."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise write_error(path, error) from None


def refuse_to_replace(out: Path, *sources: Path, what: str, is_one: Callable[[Path], bool]) -> None:
    """Raise RunError if replacing the folder `out` would remove one of the sources it is made from, the current
    folder, or anything else than `what` EdgeTune wrote: `is_one` tells.
    """
    used = dict.fromkeys(sources, "which is read") | {Path.cwd(): "the current folder"}
    for source, use in used.items():
        places = (source.resolve(), source.parent.resolve() / source.name)  # the second where the source is a link
        if any(out.resolve() in (place, *place.parents) for place in places):
            raise RunError(f"{out}: holds {source}, {use}", cure="choose another folder with --out")
    is_empty = out.is_dir() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not is_empty and not is_one(out):
        raise RunError(
            f"{out}: is no {what}, and one would take its place",
            cure="move it away, or choose another folder with --out",
        )


def beside(path: Path, suffix: str) -> Path:
    """The path beside another that has its name and a suffix; "." and ".." have their folder's name."""
    return Path(os.path.normpath(path / "..")) / f"{path.resolve().name}{suffix}"


def write_error(path: Path, error: OSError) -> RunError:
    """What to tell when a path cannot be written: a full disk, a folder of somebody else."""
    reason = error.strerror or str(error)
    return RunError(f"{path}: cannot be written: {reason}", cure="free some space or choose another folder with --out")


def _replace_folder(new: Path, old: Path) -> None:
    """Put `new` where `old` is. A rename cannot replace a full folder, so the old one steps aside first."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        if aside.exists():
            aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _full_disk(error: Exception) -> OSError | None:
    """The OSError that a library's own error tells of, if it is that the disk is full."""
    codes = () if isinstance(error, EdgeTuneError) else (errno.ENOSPC, errno.EDQUOT)
    return next((OSError(code, os.strerror(code)) for code in codes if os.strerror(code) in str(error)), None)
