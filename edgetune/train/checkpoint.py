"""Checkpoints: all that a training is, in one folder, whole or not there.

checkpoints/step-00000040/ holds adapter.safetensors (float32), optimizer.pt (plain tensors and numbers), state.json
(position in the data, best so far, generators of random numbers) and best/, a copy of adapter/ as it then was.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from edgetune.errors import RunError
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.run_dir import RunDir
from edgetune.train.state import State

KEPT = 2
"""Checkpoints that stay; the one before the newest serves if the newest is damaged."""


def save(run_dir: RunDir, state: State, model: Any, optimizer: Any, *, inputs: str, scaler: Any = None) -> Path:
    """Write a checkpoint after state.step, then drop all but the newest two and a sound one; its folder.

    Raises RunError.

    `inputs` is a hash of what the run is made from. `scaler` is the gradient scaler of float16, if any.
    """
    folder = run_dir.checkpoints / f"step-{state.step:08d}"
    with atomic_folder(folder) as temporary:
        # Made in memory first: both libraries turn a full disk into errors of their own, write_bytes into an OSError.
        (temporary / "adapter.safetensors").write_bytes(safetensors_bytes(_trained(model)))
        buffer = io.BytesIO()
        scale = None if scaler is None else scaler.state_dict()
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scale, "torch": _torch_generators()}, buffer)
        (temporary / "optimizer.pt").write_bytes(buffer.getbuffer())
        if run_dir.adapter.exists() and state.best_loss is not None:
            shutil.copytree(run_dir.adapter, temporary / "best")
        record = {"inputs": inputs, "state": dataclasses.asdict(state), "generators": _generators()}
        write_json(temporary / "state.json", record)
    kept = sound(run_dir, state)
    for old in find(run_dir)[KEPT:]:
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def adopt(other: RunDir, run_dir: RunDir, *, inputs: str) -> None:
    """Put another training's newest checkpoint and its events into this one, to go on from. Raises RunError."""
    found = find(other)
    if not found:
        raise RunError(f"{other.path}: holds no checkpoint to go on from")
    with atomic_folder(run_dir.checkpoints / found[0].name) as temporary:
        shutil.copytree(found[0], temporary, dirs_exist_ok=True)
        write_json(temporary / "state.json", {**read_json(temporary / "state.json"), "inputs": inputs})
    if other.events.exists():
        shutil.copyfile(other.events, run_dir.events)


def find(run_dir: RunDir) -> list[Path]:
    """Folders of whole checkpoints, newest first."""
    return sorted(run_dir.checkpoints.glob("step-*"), reverse=True)


def sound(run_dir: RunDir, state: State) -> Path | None:
    """The newest checkpoint that no divergence has touched; None if there is none yet."""
    return next((folder for folder in find(run_dir) if _step(folder) <= state.divergence.sound_step), None)


def forget_after(run_dir: RunDir, step: int) -> None:
    """Remove the checkpoints past `step`, newest first."""
    for folder in find(run_dir):
        if _step(folder) > step:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read, tensors on the CPU."""

    folder: Path
    state: State
    weights: Mapping[str, torch.Tensor]
    parts: Mapping[str, Any]
    """Of optimizer, scaler and torch's generators."""
    generators: Mapping[str, Any]


def newest(run_dir: RunDir, *, inputs: str, until: int | None = None) -> Checkpoint | None:
    """The newest readable checkpoint; None without one. `until`: the newest of those that are not past this step.

    Raises RunError if it was made from other inputs or if no checkpoint there can be read.
    """
    folders = [folder for folder in find(run_dir) if until is None or _step(folder) <= until]
    problems = []
    for folder in folders:
        try:
            record, weights, parts = _read(folder)
        except RunError as error:
            problems.append(error.message)
            continue
        if record["inputs"] != inputs:
            raise changed_inputs(run_dir)
        return Checkpoint(folder, record["state"], weights, parts, record["generators"])
    if problems:
        raise RunError(problems[0], cure="start the run anew with --force")
    return None


@dataclass(frozen=True)
class Memory:
    """What a checkpoint holds beside its state, in host memory."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    generators: dict[str, Any]
    torch_states: list[torch.Tensor]


def remember(model: Any, optimizer: Any, scaler: Any = None) -> Memory:
    """A copy of the trained weights and generators, and of an optimizer that has made no step."""
    weights = {name: value.clone() for name, value in _trained(model).items()}
    scale = None if scaler is None else scaler.state_dict()
    return Memory(weights, copy.deepcopy(optimizer.state_dict()), scale, _generators(), _torch_generators())


def put_back(memory: Memory, model: Any, optimizer: Any, scaler: Any = None) -> None:
    """Model, optimizer and random generators as they were."""
    _put(model, memory.weights)
    optimizer.load_state_dict(memory.optimizer)
    if scaler is not None:
        scaler.load_state_dict(memory.scaler)
    _set_generators(memory.generators, memory.torch_states)


def restore(found: Checkpoint, model: Any, optimizer: Any, *, scaler: Any = None) -> None:
    """Put a checkpoint into model, optimizer and random generators."""
    _put(model, found.weights)
    optimizer.load_state_dict(found.parts["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(found.parts["scaler"])
    _set_generators(found.generators, found.parts["torch"])


def restore_best(run_dir: RunDir, folder: Path | None) -> None:
    """adapter/ as it was at a checkpoint, or not there: a later best, written before the process died, comes again."""
    if folder is not None and (folder / "best").is_dir():
        with atomic_folder(run_dir.adapter) as temporary:
            shutil.copytree(folder / "best", temporary, dirs_exist_ok=True)
    elif run_dir.adapter.exists():
        shutil.rmtree(run_dir.adapter)


def changed_inputs(run_dir: RunDir) -> RunError:
    """The error for a run whose base or data are no longer those it began with."""
    return RunError(
        f"{run_dir.path}: its base or data have changed since the run began",
        cure="start it anew with --force, or choose another folder with --out",
    )


def sweep(run_dir: RunDir) -> None:
    """Remove what a killed process left half written."""
    for folder in (run_dir.path, run_dir.checkpoints, run_dir.cache):
        for rest in [*folder.glob(".*.tmp"), *folder.glob("..*.tmp.*"), *folder.glob(".*.old")]:
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink(missing_ok=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """state.json with its State, the adapter's weights, and optimizer.pt. Raises RunError that names a damaged file."""
    with _reading(folder / "state.json") as file:
        record = read_json(file)
        record = {
            "inputs": record["inputs"],
            "state": State.from_json(record["state"]),
            "generators": record["generators"],
        }
    with _reading(folder / "adapter.safetensors") as file:
        weights = load_file(file)
    with _reading(folder / "optimizer.pt") as file:
        parts = torch.load(file, map_location="cpu", weights_only=True)
        parts = {key: parts[key] for key in ("optimizer", "scaler", "torch")}
    return record, weights, parts


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Whatever a file that is damaged or not there makes the block raise becomes a RunError that names it.

    torch's own text is left out: of garbage it says that reading it without its guard would help.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the format that it believes to see
            yield file
    except RunError:
        raise
    except Exception as error:  # torch.load alone raises nine kinds, by where the bytes lead it
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"damaged ({type(error).__name__})"
        raise RunError(f"{file}: cannot be read: {reason}") from None


def _trained(model: Any) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: parameter.detach().cpu().contiguous() for name, parameter in named if parameter.requires_grad}


def _put(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])


def _torch_generators() -> list[torch.Tensor]:
    """States of torch's generators: the CPU's, then, where there is one, that of the CUDA device in use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else ())]


def _generators() -> dict[str, Any]:
    """States of Python's and numpy's global generators, as JSON has it."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), place, has_gauss, cached],
    }


def _set_generators(generators: Mapping[str, Any], torch_states: list[torch.Tensor]) -> None:
    version, words, gauss = generators["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = generators["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch_states[0])
    if torch.cuda.is_available() and len(torch_states) > 1:
        torch.cuda.set_rng_state(torch_states[1])
