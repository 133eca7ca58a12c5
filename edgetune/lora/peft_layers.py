"""PEFT's own layers of an adapter, one matrix at a time: what a merge is compared with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.errors import CheckError, ModelError, first_line
from edgetune.lora.read import AGAIN, Adapter, Pair
from edgetune.model.base import empty_model
from edgetune.model.quiet import load_bitsandbytes, quiet

NAME = "default"
"""What PEFT calls an adapter that has no name."""
ROWS = 8
"""Vectors, or tokens of an embedding, that go through a layer and its merge."""
LIMIT = 1e-4
"""Of the largest output; float32 summed in another order gives 1e-6."""


class PeftLayers:
    """The base with the adapter as PEFT reads its configuration: targets, ranks, scaling, DoRA. Shapes only."""

    def __init__(self, adapter: Adapter, base: Path) -> None:
        """Raises ModelError if PEFT cannot."""
        self._adapter = adapter
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_bitsandbytes()
            from peft import LoraConfig, inject_adapter_in_model

            model = empty_model(base)
            try:
                config = LoraConfig.from_pretrained(str(adapter.folder))
                config.init_lora_weights = False  # it would want the base's weights, and the numbers are the file's
                inject_adapter_in_model(config, model, adapter_name=NAME)
            except Exception as error:  # PEFT trips over whatever a config says wrong
                raise ModelError(f"{adapter.folder}: PEFT cannot read it: {first_line(error)}", cure=AGAIN) from None
        self._layers: dict[str, Any] = dict(model.eval().named_modules())  # without dropout
        self.largest = 0.0
        """The largest difference so far, of a layer's largest output."""

    @torch.no_grad()
    def compare(self, name: str, weight: Tensor, merged: Tensor) -> None:
        """Raises CheckError unless PEFT's layer computes over `weight` what the layer alone does over `merged`.

        `name` is the tensor's. Raises ModelError where PEFT would leave the pair in the file out.
        """
        pair = self._adapter.pairs[name]
        layer: Any = self._layers.get(name.removesuffix(".weight"))
        if not hasattr(layer, "lora_A"):
            raise ModelError(
                f"{self._adapter.folder}: its file changes {name}, which its target_modules leave out", cure=AGAIN
            )
        inputs = _fill(layer, weight.float(), pair)
        wanted = layer(inputs)
        plain = layer.get_base_layer()
        plain.weight = nn.Parameter(merged.float(), requires_grad=False)
        difference = float((plain(inputs) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
        _empty(layer)
        self.largest = max(self.largest, difference)
        if not difference <= LIMIT:
            raise CheckError(
                f"{self._adapter.folder}: {name} merged computes something else than PEFT, by {difference:.2g} of it",
                cure="report it with the adapter's configuration",
            )


def _fill(layer: Any, weight: Tensor, pair: Pair) -> Tensor:
    """Put a pair and the base's weight into PEFT's layer; inputs for it."""
    plain, draw = layer.get_base_layer(), torch.Generator().manual_seed(0)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if getattr(plain, "bias", None) is not None:
        plain.bias = None  # the same on both sides
    if pair.magnitude is not None:
        layer.lora_magnitude_vector[NAME].weight = nn.Parameter(pair.magnitude, requires_grad=False)
    if isinstance(plain, nn.Embedding):
        layer.lora_embedding_A[NAME] = nn.Parameter(pair.b.T.contiguous(), requires_grad=False)
        layer.lora_embedding_B[NAME] = nn.Parameter(pair.a.T.contiguous(), requires_grad=False)
        if hasattr(plain, "embed_scale"):
            plain.embed_scale = torch.ones(())  # Gemma's, a number that is on the meta device too
        return torch.randint(len(weight), (ROWS,), generator=draw)
    layer.lora_A[NAME].weight = nn.Parameter(pair.a, requires_grad=False)
    layer.lora_B[NAME].weight = nn.Parameter(pair.b, requires_grad=False)
    return torch.randn(ROWS, weight.shape[1], generator=draw)


def _empty(layer: Any) -> None:
    """Let go of the matrices: the model is to stay shapes only."""
    layer.get_base_layer().weight = None
