"""What is timed: a loaded model that makes tokens, whatever runs it. A new kind of target is a module and a line here.

Runs in the target's own process (child.py). Loading a bundle imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgetune.bench.noise import Value


@dataclass(frozen=True)
class Weights:
    """What one token costs: the weights it is multiplied with."""

    body: int
    """Weights that every token is multiplied with."""
    head: int
    """Weights of the output head."""
    bytes: int
    """Bytes of both as they are held; an embedding that is only looked up does not count."""
    has_head_for_each: bool
    """Whether a prefill multiplies all tokens of the prompt with the head, or the last one alone."""

    def prefill_flops(self, tokens: int) -> float:
        """Multiplications and additions with weights in a prefill; attention's own are left out."""
        return 2.0 * (self.body * tokens + self.head * (tokens if self.has_head_for_each else 1))


class Engine(Protocol):
    """A model, loaded."""

    device: str
    """cpu or cuda."""
    context_length: int
    """Longest text in tokens."""
    vocabulary: int
    """Token ids lie below it."""

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds of each new token after a prompt, greedily, no end token ends it; the prefill is in the first."""
        ...

    def weights(self) -> Weights | Value:
        """What a token costs, or {"absent": reason}."""
        ...


MODULES = {
    "bundle": "edgetune.bench.bundle_engine",
    "base": "edgetune.bench.torch_engine",
    "tuned": "edgetune.bench.torch_engine",
    "merged": "edgetune.bench.torch_engine",
    "gguf": "edgetune.bench.gguf_engine",
}
"""Kind of a target -> the module whose `load` makes an Engine of a request; see child.py."""


def loader(request: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Engine]:
    """What loads the engine of a request, its libraries imported. Raises BundleError, ModelError, MissingExtraError."""
    load: Callable[[Mapping[str, Any]], Engine] = importlib.import_module(MODULES[request["kind"]]).load
    return load
