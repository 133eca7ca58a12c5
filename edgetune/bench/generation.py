"""Decoders: what one round asks of a target's processes, and the columns that rounds become."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgetune.bench.decoding import measure_memory, measure_speed
from edgetune.bench.energy import NO_COUNTER
from edgetune.bench.noise import Value, absent, is_absent, peaks, summarise
from edgetune.bench.settings import Ask, Measure, Settings
from edgetune.errors import OutOfMemoryError

if TYPE_CHECKING:
    from edgetune.evaluate.evaluate import Result

COLUMNS: tuple[str, ...] = (
    "peak_bytes",
    "time_to_first_token_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "weights",
    "share_of_bandwidth",
    "share_of_arithmetic_peak",
    "energy_j_per_token",
)
LACKS = absent("writes text, labels none")
WRITES_TEXT = True
MEASURES: Mapping[str, Measure] = {"speed": measure_speed, "memory": measure_memory}
LARGEST_LOSS = 700.0
"""Whose exponential is still a number."""


def worth(result: Result, is_same_text: bool) -> dict[str, Value]:
    """Score, loss a token, perplexity, and the distance from the reference where both see the same tokens."""
    score: Any = result.score
    tokens = {"trained_tokens": score.trained_tokens}
    kl = absent("its tokens are not the reference's")
    if is_same_text:
        distance = result.distance
        kl = absent("no trained token") if distance is None else dataclasses.asdict(distance)
    value = {"metric": score.metric, "value": score.score, "interval": score.interval, "rows": score.rows}
    return {
        "score": absent("the metric is the loss") if score.score is None else value,
        "loss": {"value": score.loss, "interval": score.loss_interval, **tokens},
        "perplexity": {
            "value": score.perplexity,
            "interval": [math.exp(min(bound, LARGEST_LOSS)) for bound in score.loss_interval],
            **tokens,
        },
        "kl": kl,
    }


def measure_round(ask: Ask, settings: Settings) -> dict[str, Any]:
    """Speed, and the peak of memory by context, each from a process of its own."""
    speed = ask(
        {
            "measure": "speed",
            "passes": settings.passes,
            "prompts": settings.prompts,
            "decode": {"prompt": settings.decode_prompt, "new": settings.decode_new},
        }
    )
    return {**speed, "memory": {context: _memory(ask, context) for context in settings.contexts}}


def columns(rounds: Sequence[Mapping[str, Any]], settings: Settings, machine: Mapping[str, Any]) -> dict[str, Value]:
    """Load time, peaks, first tokens, prefill, decoding, shares of the machine, energy."""
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
        "peak_bytes": _memory_columns([item["memory"] for item in rounds], settings),
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


def _memory(ask: Ask, context: int) -> Value:
    """Peaks with a context of so many tokens; absent where the context or the machine's memory is smaller."""
    try:
        found = ask({"measure": "memory", "context": context, "is_warm_too": True})
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
        flops_per_token = first["prefill_flops"][prefill_at] / int(prefill_at)
        arithmetic = {**_share(prefill, flops_per_token / peak), "of_flops_per_s": peak}
    return {
        "weights": weights,
        "share_of_bandwidth": {**_share(decode, weights["bytes"] / bandwidth), "of_bytes_per_s": bandwidth},
        "share_of_arithmetic_peak": arithmetic,
    }


def _share(rate: Value, per_token: float) -> Value:
    """What a rate of tokens uses, with the rate's own noise."""
    return {
        "value": rate["median"] * per_token,
        **{key: rate[key] * per_token for key in ("least", "most")},
        "spread": rate["spread"],
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
