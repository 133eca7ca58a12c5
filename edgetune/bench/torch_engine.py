"""A torch model, timed through the greedy decoding that scores it: a model folder, or a base with an adapter."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgetune.bench.engine import Weights
from edgetune.evaluate import torch_model
from edgetune.evaluate.rows import Limits
from edgetune.model.config import context_length
from edgetune.recipe import ExportTable


class TorchEngine:
    """A causal language model of transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device = str(model.device.type)
        config = model.config.get_text_config()
        self.context_length = context_length(config.to_dict(), ExportTable())
        self.vocabulary = int(config.vocab_size)

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds of each new token."""
        limits = Limits(max_new_tokens=new_tokens, context_length=self.context_length, eos_ids=())
        times = [time.perf_counter()]
        torch_model.greedy(self._model, [ids], limits=limits, on_token=lambda: times.append(time.perf_counter()))
        return [after - before for before, after in itertools.pairwise(times)]

    def weights(self) -> Weights:
        """Counted in the modules that multiply: linear layers of torch and bitsandbytes, adapters among them."""
        head = self._model.get_output_embeddings()
        modules = [module for module in self._model.modules() if module is not head and _is_linear(module)]
        size = sum(_held_bytes(module) for module in [*modules, head])
        body = sum(module.in_features * module.out_features for module in modules)
        hidden = int(self._model.config.get_text_config().hidden_size)
        return Weights(body, hidden * self.vocabulary, size, has_head_for_each=False)


def load(request: Mapping[str, Any]) -> TorchEngine:
    """The torch model of a request (see child.py). Raises ModelError."""
    torch.set_num_threads(request["threads"])
    return TorchEngine(torch_model.load(request).model)


def _is_linear(module: Any) -> bool:
    """Whether it is one matrix: not what merely wraps one (PEFT's layers have the sizes of the base's)."""
    has_sizes = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return has_sizes and isinstance(getattr(module, "weight", None), torch.Tensor) and not hasattr(module, "base_layer")


def _held_bytes(module: Any) -> int:
    """Bytes of a module's tensors, with the scales that bitsandbytes keeps beside them."""
    tensors = [*module.parameters(), *module.buffers()]
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    while state is not None:
        tensors.append(state.absmax)
        state = state.state2
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
