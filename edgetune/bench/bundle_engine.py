"""A decoder bundle, timed through the runtime that goes to the device. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.bench.engine import Weights
from edgetune.bench.noise import Value, absent
from edgetune.errors import BundleError
from edgetune.files import read_json
from edgetune.runtime.bundle import AGAIN, GENAI_CONFIG
from edgetune.runtime.decoder import Decoder


class BundleEngine:
    """A bundle with its active adapter."""

    device = "cpu"

    def __init__(self, path: Path, *, threads: int) -> None:
        """Raises BundleError."""
        self._decoder = Decoder(path, threads=threads)
        self.context_length = self._decoder.bundle.context_length
        where = path / GENAI_CONFIG
        try:
            model = read_json(where, BundleError, cure=AGAIN)["model"]
            self.vocabulary, self._graph = int(model["vocab_size"]), path / str(model["decoder"]["filename"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{where}: damaged: {error!r}", cure=AGAIN) from None

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds of each new token."""
        return self._decoder.token_seconds(ids, new_tokens=new_tokens)

    def weights(self) -> Weights | Value:
        """Counted in the graph, which onnx_ir reads."""
        try:
            import onnx_ir

            from edgetune.bench.graph_weights import count_weights
        except ModuleNotFoundError:
            return absent("onnx_ir, which reads the graph, is not installed")
        return count_weights(onnx_ir.load(self._graph).graph, self.vocabulary)


def load(request: Mapping[str, Any]) -> BundleEngine:
    """The bundle of a request (see child.py)."""
    return BundleEngine(Path(request["path"]), threads=request["threads"])
