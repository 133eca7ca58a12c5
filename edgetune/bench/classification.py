"""Encoders that label: what one round asks of a target's processes, and the columns that rounds become."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.bench.labelling import Labeller, Load, measure_labelling, measure_labelling_memory
from edgetune.bench.noise import Value, absent, peaks, summarise
from edgetune.bench.settings import Ask, Measure, Settings

if TYPE_CHECKING:
    from edgetune.evaluate.evaluate import Result

LENGTHS = (16, 64, 128)
"""Tokens of a text."""
BATCHES = (1, 8, 32)
"""Texts labelled at once."""
MEMORY_LENGTH = 128
COLUMNS: tuple[str, ...] = ("labelling",)
LACKS = absent("labels texts, writes none")
WRITES_TEXT = False
CLASS_SCORES = ("accuracy", "macro_f1", "ece")


def worth(result: Result, _: bool) -> dict[str, Value]:
    """Scores and loss a text; what belongs to writing is absent."""
    score: Any = result.score
    return {
        "score": {"metric": score.metric, "value": score.score, "interval": score.interval, "rows": score.rows},
        "loss": {"value": score.loss, "interval": score.loss_interval, "texts": score.rows},
        "perplexity": LACKS,
        "kl": LACKS,
        "classes": {name: score.classes[name] for name in CLASS_SCORES},
    }


def measure_round(ask: Ask, settings: Settings) -> dict[str, Any]:
    """Speed by batch and length, and the peak of memory by batch, each from a process of its own."""
    speed = ask({"measure": "labelling", "passes": settings.passes, "lengths": LENGTHS, "batches": BATCHES})
    memory = {
        size: ask({"measure": "labelling_memory", "length": MEMORY_LENGTH, "batch": size, "is_warm_too": True})
        for size in (BATCHES[0], BATCHES[-1])
    }
    return {**speed, "memory": memory}


def columns(rounds: Sequence[Mapping[str, Any]], _: Settings, __: Mapping[str, Any]) -> dict[str, Value]:
    """Load time, and under "labelling" latency and throughput by length and batch, and peaks by batch."""
    first = rounds[0]
    return {
        "device": first["device"],
        "context_length": first["context_length"],
        "load_s": summarise([[item["load_s"]] for item in rounds]),
        "labelling": {
            "batch": {
                str(length): {str(size): _batch(rounds, length, size) for size in BATCHES}
                if str(length) in first["batch_s"]
                else absent(f"its texts hold {first['context_length']:,} tokens")
                for length in LENGTHS
            },
            "peak_bytes": {
                str(size): {
                    **peaks([item["memory"][size] for item in rounds]),
                    "tokens": min(MEMORY_LENGTH, first["context_length"]),
                }
                for size in first["memory"]
            },
        },
    }


def _batch(rounds: Sequence[Mapping[str, Any]], length: int, size: int) -> Value:
    """Seconds of one batch, and texts a second in batches of that size."""
    seconds = [item["batch_s"][str(length)][str(size)] for item in rounds]
    rates = [[size / one for one in process] for process in seconds]
    return {"latency_s": summarise(seconds), "texts_per_s": summarise(rates, is_rate=True)}


def load_bundle(request: Mapping[str, Any]) -> tuple[Labeller, int, str]:
    """The labeller, its longest text in tokens and its device."""
    from edgetune.runtime.classifier import Classifier

    classifier = Classifier(Path(request["path"]), threads=request["threads"])
    return classifier, classifier.format.max_length, "cpu"


def load_torch(request: Mapping[str, Any]) -> tuple[Labeller, int, str]:
    """The same of a torch model."""
    import torch

    torch.set_num_threads(request["threads"])
    labeller = importlib.import_module("edgetune.evaluate.torch_labeller").load(request)
    return labeller, labeller.classifier.spec.max_length, str(labeller.classifier.device.type)


def loader(request: Mapping[str, Any]) -> Load:
    """What loads a request's target, the libraries imported."""
    if request["kind"] == "bundle":
        importlib.import_module("edgetune.runtime.classifier")
        return load_bundle
    importlib.import_module("edgetune.evaluate.torch_labeller")
    return load_torch


MEASURES: Mapping[str, Measure] = {
    "labelling": partial(measure_labelling, loader=loader),
    "labelling_memory": partial(measure_labelling_memory, loader=loader),
}
