"""Columns: what a measured number is called, how it is written, and whether more of it is better. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgetune.report.facts import Model, Number
from edgetune.report.table import SCORE_NAMES

MIB = 1024**2
Unit = Literal["share", "bytes", "seconds", "nats", "rate", "plain"]


@dataclass(frozen=True)
class Column:
    """A quantity that models are measured in."""

    key: str
    title: str
    unit: Unit
    better: Literal["more", "less"] | None

    @property
    def factor(self) -> float:
        """From the stored value to the one on an axis."""
        return {"share": 100.0, "bytes": 1 / MIB, "seconds": 1e3}.get(self.unit, 1.0)

    @property
    def axis(self) -> str:
        """Title of an axis, with the unit."""
        units = {"share": "%", "bytes": "MiB", "seconds": "ms", "nats": "nats"}
        return f"{self.title} ({units[self.unit]})" if self.unit in units else self.title

    def form(self, value: float) -> str:
        """A value for people."""
        scaled = value * self.factor
        if self.unit == "share":
            return f"{scaled:.1f}%"
        if self.unit == "bytes":
            return f"{scaled:,.0f} MiB" if scaled >= 100 else f"{scaled:.1f} MiB"
        if self.unit == "seconds":
            return f"{value:,.2f} s" if value >= 1 else f"{scaled:.1f} ms"
        if self.unit == "nats":
            return f"{value:.4f}".replace("-0.0000", "0.0000")
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    def form_interval(self, number: Number) -> str:
        """An interval for people, "" where there is none."""
        if number.low is None or number.high is None:
            return ""
        return f"{self.form(number.low)} to {self.form(number.high)}"


KNOWN = {
    "loss": ("loss", "nats", "less"),
    "perplexity": ("perplexity", "plain", "less"),
    "kl": ("KL to the fine-tune", "nats", "less"),
    "exact": ("exact match", "share", "more"),
    "fields_f1": ("F1 of JSON fields", "share", "more"),
    "valid": ("valid JSON", "share", "more"),
    "ece": ("calibration error", "share", "less"),
    "disk_bytes": ("on disk", "bytes", "less"),
    "peak_bytes": ("peak memory", "bytes", "less"),
    "device_peak_bytes": ("peak memory of the GPU", "bytes", "less"),
    "scoring_peak_bytes": ("peak memory, batched", "bytes", "less"),
    "tokens_per_s": ("tokens/s", "rate", "more"),
    "latency_s": ("one text", "seconds", "less"),
    "p95_s": ("one text, 95th percentile", "seconds", "less"),
    "load_s": ("load time", "seconds", "less"),
    "time_to_first_token_s": ("first token after", "seconds", "less"),
    "prefill_tokens_per_s": ("prefill tokens/s", "rate", "more"),
    "decode_tokens_per_s": ("decode tokens/s", "rate", "more"),
    "share_of_bandwidth": ("of the memory's bandwidth", "share", "more"),
    "share_of_arithmetic_peak": ("of the arithmetic peak", "share", "more"),
    "energy_j_per_token": ("joules a token", "plain", "less"),
    "same_next_token": ("same next token", "share", "more"),
    "same_answers": ("same answers", "share", "more"),
    "gain_kept": ("gain kept", "share", "more"),
}
"""First part of a key -> title, unit, what is better."""
FIRST = ("score", "loss", "disk_bytes", "peak_bytes", "tokens_per_s", "decode_tokens_per_s", "latency_s")
"""Columns of the first table, in their order; the others follow below it."""


def column(key: str) -> Column:
    """The column of a key: parts after a dot say which one, as in score.json or peak_bytes.2048.cold."""
    name, *rest = key.split(".")
    if name == "score":
        metric = rest[0] if rest else "score"
        title = SCORE_NAMES.get(metric, metric.replace("_", " "))
        return Column(key, title, "share" if metric in (*SCORE_NAMES, "score") else "plain", "more")
    title, unit, better = KNOWN.get(name, (name.replace("_", " "), _unit(name), None))
    if rest:
        title = f"{title}{' ' if name == 'time_to_first_token_s' else ', '}{', '.join(map(_part, rest))}"
    return Column(key, title, unit, better)  # type: ignore[arg-type]


def columns(models: Iterable[Model]) -> list[Column]:
    """The columns that any of the models has, the first ones first."""
    keys = list(dict.fromkeys(key for model in models for key in model.values))

    def place(key: str) -> tuple[int, int]:
        name = key.split(".")[0]
        return (FIRST.index(name) if name in FIRST else len(FIRST)), keys.index(key)

    return [column(key) for key in sorted(keys, key=place)]


def is_first(key: str) -> bool:
    """Whether a column stands in the first table."""
    return key.split(".")[0] in FIRST


def default_axes(models: Iterable[Model]) -> tuple[str, str] | None:
    """(x, y): memory, or size where no memory is known, and score, or loss; of several those that show the most models.

    None where no model has both.
    """
    found = list(models)
    keys = list(dict.fromkeys(key for model in found for key in model.values))

    def count(x: str, y: str) -> int:
        return sum(x in model.values and y in model.values for model in found)

    for x_name in ("peak_bytes", "disk_bytes"):
        for y_name in ("score", "loss"):
            xs, ys = ([key for key in keys if key.split(".")[0] == name] for name in (x_name, y_name))
            best = max(((x, y) for x in xs for y in ys), key=lambda pair: count(*pair), default=None)
            if best and count(*best):
                return best
    return None


def _unit(name: str) -> str:
    """Units stand at the end of a name."""
    endings = {"_bytes": "bytes", "_per_s": "rate", "_s": "seconds"}
    return next((unit for ending, unit in endings.items() if name.endswith(ending)), "plain")


def _part(text: str) -> str:
    return f"{int(text):,} tokens" if text.isdecimal() else text.replace("_", " ")
