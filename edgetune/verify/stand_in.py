"""A small random model of a base's kind: what its graph computes is seen in a second, before any training.

It has the base's width of a head, its rotation, its windows and one layer of each kind, so its graph has every operator
that the base's will have, and changes at the same lengths of text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.errors import ModelError
from edgetune.export.attention import Attention, attention_of, check_rotation
from edgetune.export.decoder import build_bare
from edgetune.files import write_json
from edgetune.model.base import empty_model
from edgetune.model.quiet import quiet
from edgetune.runtime.bundle import GENAI_CONFIG, GRAPH, Bundle
from edgetune.verify.deviation import Deviation, tail_deviation

VOCABULARY = 251
"""No other size in the model: the builder tells the head by it."""
SPREAD = 0.2
"""Standard deviation of its weights: what one token does to another shows in the logits."""


def stand_in_deviations(folder: Path, lengths: Sequence[int], *, tail: int) -> list[Deviation]:
    """For a random text of each length: how far the stand-in's graph is from transformers in the last `tail` tokens.

    Raises ModelError for a base of whose kind no model or graph can be made.
    """
    check_rotation(folder)
    with tempfile.TemporaryDirectory() as kept:
        source, made = Path(kept) / "model", Path(kept) / "graph"
        made.mkdir()
        model = _write(empty_model(folder).config, source)
        build_bare(source, made, max_length=max(lengths))
        config = model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        write_json(made / GENAI_CONFIG, {"model": {"decoder": {"head_size": head_size, "filename": GRAPH}}})
        context = attention_of(config, max_length=max(lengths)).context
        bundle = Bundle(made, "stand-in", "fp32", None, None, context_length=context)
        draw = np.random.default_rng(0)
        texts = [draw.integers(VOCABULARY, size=min(length, context)).tolist() for length in lengths]
        return [tail_deviation(model, bundle, text, tail=tail) for text in texts]


def _write(config: Any, folder: Path) -> Any:
    """Write the stand-in of a configuration, which is changed, as a Hugging Face folder; the model."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    _shrink(config, attention_of(config))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:  # whatever the model's code makes of a configuration that it never met
            raise ModelError(f"no small model can be made of this {config.model_type}: {error}") from None
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() >= 2:
                parameter.normal_(0.0, SPREAD)
            else:  # biases are zero and norms one: a mistake with them would not show
                parameter.add_(torch.randn_like(parameter) * SPREAD)
        model.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)  # the builder asks for one
    return model.eval()


def _shrink(config: Any, attention: Attention) -> None:
    """Make a configuration small: one layer of each kind, two heads, hardly any words."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    is_grouped = config.num_key_value_heads != config.num_attention_heads
    kinds = list(zip(attention.windows, attention.rotates, attention.tables, strict=True))
    layers = sorted({kinds.index(kind) for kind in kinds})
    layers = layers if len(layers) > 1 else [0] * min(2, len(kinds))
    values = {
        "num_hidden_layers": len(layers),
        "num_attention_heads": 2,
        "num_key_value_heads": 1 if is_grouped else 2,
        "hidden_size": 2 * width,
        "intermediate_size": 2 * width,
        "vocab_size": VOCABULARY,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    for name in ("layer_types", "no_rope_layers"):
        stated = getattr(config, name, None)
        if stated is not None:
            values[name] = [stated[layer] for layer in layers]
    for name, value in values.items():
        setattr(config, name, value)
