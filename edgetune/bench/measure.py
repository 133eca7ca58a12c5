"""Speed and memory of targets, each measurement in a fresh process on pinned cores: rounds of samples -> columns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.bench import labelling
from edgetune.bench.energy import NO_COUNTER
from edgetune.bench.noise import Value, absent, is_absent, peaks, summarise
from edgetune.child_process import Progress, ask
from edgetune.errors import OutOfMemoryError
from edgetune.evaluate.evaluate import Target

CHILD = ["-m", "edgetune.bench.child"]
"""What Python runs for one measurement."""
GENERATION_COLUMNS = (
    "peak_bytes",
    "time_to_first_token_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "weights",
    "share_of_bandwidth",
    "share_of_arithmetic_peak",
    "energy_j_per_token",
)
"""What a target that labels texts does not have."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    threads: int
    repeats: int = 3
    """Fresh processes for each speed and each peak of memory."""
    passes: int = 5
    """Samples in each process, after a warm-up."""
    prompts: tuple[int, ...] = (32, 128, 512)
    """Tokens before a first token that is timed."""
    decode_prompt: int = 128
    decode_new: int = 128
    """Tokens that are decoded after decode_prompt ones."""
    contexts: tuple[int, ...] = (512, 2048)
    """Tokens of a full context whose memory is measured."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, and how it is asked."""

    name: str
    tasks_from: str | None = None
    """A folder with task files of the user's own; None: those that come with lm-eval."""
    limit: int | None = None
    """Rows at most, the first ones."""
    shots: int | None = None
    """Examples before each question; None: as the task says."""
    is_chat: bool = False
    """Whether prompts go through the target's chat template."""


def measure_harness(target: Target, task: HarnessTask, settings: Settings, progress: Progress) -> Value:
    """The score of a target on a task of lm-eval: see harness.measure_task. Raises DataError."""
    if target.task == "classification":
        return labelling.WRITES_NO_TEXT
    request = {"measure": "lm-eval", "task_name": task.name, **dataclasses.asdict(task)}
    return _ask(target, request, settings, _at(progress, f"lm-eval {target.name}"))


def measure_costs(
    targets: Sequence[Target], settings: Settings, progress: Progress
) -> tuple[list[dict[str, Value]], dict[str, Any]]:
    """The columns of speed and memory of each target, in order, and what each device they ran on can do at best.

    Targets take turns, so that a machine that slows down slows all.

    Raises what loading a target raises: BundleError, ModelError, MissingExtraError, OutOfMemoryError.
    """
    rounds: list[list[dict[str, Any]]] = [[] for _ in targets]
    for number in range(1, settings.repeats + 1):
        for target, found in zip(targets, rounds, strict=True):
            where = f"bench {target.name}, round {number} of {settings.repeats}"
            found.append(_round(target, settings, _at(progress, where)))
    machines = {
        device: ask(
            CHILD,
            {"measure": "machine", "name": "the machine", "device": device, "threads": settings.threads},
            name="the machine",
        )
        for device in sorted({found[0]["device"] for found in rounds})
    }
    columns = [
        {**dict.fromkeys(GENERATION_COLUMNS, labelling.WRITES_NO_TEXT), **labelling.columns(found)}
        if target.task == "classification"
        else {
            **_speed_columns(found, settings, machines[found[0]["device"]]),
            "peak_bytes": _memory_columns([item["memory"] for item in found], settings),
            "labelling": labelling.LABELS_NOTHING,
        }
        for target, found in zip(targets, rounds, strict=True)
    ]
    return columns, machines


def _at(progress: Progress, where: str) -> Progress:
    """Progress that says what is being measured."""
    return lambda event: progress({**event, "stage": where})


def _round(target: Target, settings: Settings, progress: Progress) -> dict[str, Any]:
    """One measurement of everything, each in a process of its own."""
    if target.task == "classification":
        return labelling.measure_round(
            lambda request: _ask(target, request, settings, progress), passes=settings.passes
        )
    speed = _ask(target, {"measure": "speed", **_speed_request(settings)}, settings, progress)
    return {**speed, "memory": {length: _memory(target, length, settings, progress) for length in settings.contexts}}


def _speed_request(settings: Settings) -> dict[str, Any]:
    return {
        "passes": settings.passes,
        "prompts": settings.prompts,
        "decode": {"prompt": settings.decode_prompt, "new": settings.decode_new},
    }


def _ask(target: Target, request: Mapping[str, Any], settings: Settings, progress: Progress) -> dict[str, Any]:
    """One measurement of a target."""
    whole = {
        **request,
        "kind": target.kind,
        "name": target.name,
        "path": str(target.path),
        "model": dataclasses.asdict(target.model) if target.model else None,
        "task": target.task,
        "threads": settings.threads,
    }
    return ask(CHILD, whole, name=str(target.path), progress=progress)


def _memory(target: Target, context: int, settings: Settings, progress: Progress) -> Value:
    """Peaks with a context of so many tokens; absent where the context or the machine's memory is smaller."""
    try:
        found = _ask(target, {"measure": "memory", "context": context, "is_warm_too": True}, settings, progress)
    except OutOfMemoryError as error:
        return absent(error.message)
    if found["cold"] is None:
        return absent(f"its context holds {found['context_length']:,} tokens")
    return found


def _memory_columns(rounds: Sequence[Mapping[int, Value]], settings: Settings) -> Value:
    """{context: peaks}, absent where the target cannot hold the context."""
    columns: Value = {}
    for context in settings.contexts:
        found = [memory[context] for memory in rounds]
        missing = next((value for value in found if is_absent(value)), None)
        columns[str(context)] = missing or peaks(found)
    return columns


def _speed_columns(
    rounds: Sequence[Mapping[str, Any]], settings: Settings, machine: Mapping[str, Any]
) -> dict[str, Value]:
    """Load time, first tokens, prefill, decoding, shares of the machine, energy."""
    first, context = rounds[0], rounds[0]["context_length"]
    prefill_at = max(first["first_s"], key=int, default=None)
    decode = summarise(
        [[len(steps) / sum(steps) for steps in item["token_s"]] for item in rounds],
        is_rate=True,
        prompt_tokens=first["decode_prompt"],
        new_tokens=len(first["token_s"][0]) + 1,
    )
    slow = summarise([[1 / step for steps in item["token_s"] for step in steps] for item in rounds], is_rate=True)
    short = absent(f"its context holds {context:,} tokens")
    prefill = short
    if prefill_at is not None:
        prefill = summarise(
            [[int(prefill_at) / seconds for seconds in item["first_s"][prefill_at]] for item in rounds],
            is_rate=True,
            prompt_tokens=int(prefill_at),
        )
    return {
        "device": first["device"],
        "context_length": context,
        "load_s": summarise([[item["load_s"]] for item in rounds]),
        "time_to_first_token_s": {
            str(length): summarise([item["first_s"][str(length)] for item in rounds])
            if str(length) in first["first_s"]
            else short
            for length in settings.prompts
        },
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": {**decode, "p95": slow["p95"]},
        **_shares(first, prefill, prefill_at, decode, machine),
        "energy_j_per_token": _energy(rounds),
    }


def _shares(
    first: Mapping[str, Any], prefill: Value, prefill_at: str | None, decode: Value, machine: Mapping[str, Any]
) -> dict[str, Value]:
    """Of the memory's bandwidth while decoding, of the arithmetic peak in the prefill; and the weights counted."""
    weights = first["weights"]
    if is_absent(weights):
        return {"weights": weights, "share_of_bandwidth": weights, "share_of_arithmetic_peak": weights}
    bandwidth, peak = machine["bytes_per_s"]["best"], machine["flops_per_s"]["best"]
    arithmetic = prefill
    if prefill_at is not None:
        seconds = int(prefill_at) / prefill["median"]
        arithmetic = {"value": first["prefill_flops"][prefill_at] / seconds / peak, "of_flops_per_s": peak}
    return {
        "weights": weights,
        "share_of_bandwidth": {"value": weights["bytes"] * decode["median"] / bandwidth, "of_bytes_per_s": bandwidth},
        "share_of_arithmetic_peak": arithmetic,
    }


def _energy(rounds: Sequence[Mapping[str, Any]]) -> Value:
    """Joules a decoded token, that of the prompt before it spread over them."""
    found = [item["energy_j"] for item in rounds]
    if any(value is None for value in found):
        return absent(NO_COUNTER)
    return {
        **summarise([[value] for value in found]),
        "median": statistics.median(found),
        "source": rounds[0]["energy_source"],
    }
