"""export/attention.py: windows and rotation of the graph are transformers' own, at every length."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import THETA, WINDOW, WINDOWED, graph_of

from edgetune.export.attention import attention_of, decoder_attention
from edgetune.runtime.logits import Logits
from edgetune.verify.deviation import tail_deviation

TOKENS = 60
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * n for n in range(16)],
    "long_factor": [2.0 + 0.5 * n for n in range(16)],
    "original_max_position_embeddings": 32,
}
ROTATED = {
    "linear": ("Llama", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}}),
    "dynamic": ("Llama", {"rope_parameters": {**THETA, "rope_type": "dynamic", "factor": 4.0}}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                **THETA,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "yarn": (
        "Qwen2",
        {"rope_parameters": {**THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "yarn with an attention factor": (
        "Mistral",
        {
            "rope_parameters": {
                **THETA,
                "rope_type": "yarn",
                "factor": 4.0,
                "attention_factor": 1.3,
                "beta_fast": 16.0,
                "original_max_position_embeddings": 32,
            },
            "sliding_window": None,
        },
    ),
    "long": ("Phi3", {"rope_parameters": {**THETA, **LONG}, "original_max_position_embeddings": 32}),
    "half of a head": ("Phi3", {"rope_parameters": {**THETA, "rope_type": "default", "partial_rotary_factor": 0.5}}),
    "a quarter of a head": (
        "Phi3",
        {"rope_parameters": {**THETA, "rope_type": "default", "partial_rotary_factor": 0.25}},
    ),
    "linear, of the layers without a window": (
        "Gemma3",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        },
    ),
    "not in each layer": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "not in each layer, heads that are rotated outside": (
        "SmolLM3",
        {"no_rope_layers": [0, 1], "head_dim": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
}


def torch_model(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def text(length: int) -> list[int]:
    return np.random.default_rng(1).integers(5, 500, size=length).tolist()


@pytest.mark.parametrize("kind", sorted(WINDOWED))
def test_every_token_sees_as_many_before_it_as_transformers_lets_it(a_decoder, tmp_path, kind):
    """Independent of attention_of: at each position, those on the edge of the window among them."""
    folder = a_decoder(kind, **WINDOWED[kind])
    found = Logits(graph_of(folder, tmp_path / "graph")).logits(text(TOKENS))
    model = torch_model(folder)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([text(TOKENS)])).logits[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3 * wanted.std())
    assert WINDOW in attention_of(decoder_attention(folder)[0].config).windows


@pytest.mark.parametrize("name", sorted(ROTATED))
def test_every_rotation_of_transformers_is_in_the_graph(a_decoder, tmp_path, name):
    kind, settings = ROTATED[name]
    folder = a_decoder(kind, **settings)
    bundle, model = graph_of(folder, tmp_path / "graph"), torch_model(folder)
    for length in (20, 32, 33, TOKENS):
        assert tail_deviation(model, bundle, text(length), tail=length).relative < 1e-3


def test_losses_beyond_the_switch_of_long_rope_are_those_of_one_text(a_decoder, tmp_path):
    """Chunks that hand on their keys would rotate the first ones by the short factors."""
    folder = a_decoder("Phi3", rope_parameters={**THETA, **LONG}, original_max_position_embeddings=32)
    found = Logits(graph_of(folder, tmp_path / "graph")).token_losses(text(TOKENS))
    ids = torch.tensor([text(TOKENS)])
    with torch.no_grad():
        logits = torch_model(folder)(input_ids=ids).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_older_spellings_of_a_rotation_are_the_same(a_decoder):
    folder = a_decoder("Phi3", rope_parameters={**THETA, **LONG}, original_max_position_embeddings=32)
    wanted = decoder_attention(folder)[1]
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("rope_parameters")
    for kind in ("su", "longrope"):
        older = {"type": kind} | {key: stated[key] for key in stated if key not in ("rope_type", "rope_theta")}
        (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": older}))
        assert decoder_attention(folder)[1] == wanted
    assert wanted.switch == 32
    assert wanted.lengths == (32,)
