"""export/attention.py: windows and rotation of the graph are transformers' own, at every length."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgetune.bundle.export import export_folder
from edgetune.errors import ModelError
from edgetune.export.attention import attention_of, decoder_attention
from edgetune.export.decoder import build_bare
from edgetune.runtime.bundle import Bundle
from edgetune.runtime.logits import Logits
from edgetune.verify.deviation import tail_deviation
from edgetune.verify.lengths import attention_checks, check_computable

WINDOW = 24
TOKENS = 60
THETA = {"rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * n for n in range(16)],
    "long_factor": [2.0 + 0.5 * n for n in range(16)],
    "original_max_position_embeddings": 32,
}
WINDOWED = {
    "Gemma2": {"sliding_window": WINDOW},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "Mistral": {"sliding_window": WINDOW},
    "Phi3": {"sliding_window": WINDOW},
    "Qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "SmolLM3": {"sliding_window": WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0]},
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


def graph_of(folder: Path, out: Path) -> Bundle:
    """The bare float32 graph of a folder, as far a bundle as Logits needs one."""
    out.mkdir()
    build_bare(folder, out)
    config = json.loads((folder / "config.json").read_text())
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    (out / "genai_config.json").write_text(
        json.dumps({"model": {"decoder": {"head_size": size, "filename": "model.onnx"}}})
    )
    return Bundle(out, "bare", "fp32", None, None, context_length=256)


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


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_verification_goes_beyond_the_window(a_decoder, a_recipe, prompts, tmp_path, precision):
    folder = a_decoder("Mistral", sliding_window=100)
    recipe = a_recipe(precision=precision, method="rtn")
    checks = export_folder(folder, tmp_path / "bundle", recipe, prompts=prompts).verification.checks
    found = {check.name: check for check in checks}
    assert found["logits beyond 100 tokens"].detail == "the last 16 of 116 tokens against torch"
    assert found["attention windows"].detail == "2 of 2 layers have one"
    assert found["rotary tables"].value < 1e-3


def test_what_would_take_the_model_too_long_is_verified_on_a_small_one(
    a_decoder, a_recipe, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgetune.verify.lengths.LEAST_TOKENS", 0)
    monkeypatch.setattr("edgetune.verify.lengths.ALL_PRODUCTS", 0)
    folder = a_decoder("Mistral", sliding_window=100)
    result = export_folder(folder, tmp_path / "bundle", a_recipe(precision="fp32"), prompts=prompts)
    (found,) = (check for check in result.verification.checks if check.name == "logits beyond 100 tokens")
    assert "of a small random model of this kind" in found.detail


def test_a_graph_that_lost_a_window_or_has_other_tables_is_found(a_decoder, tmp_path):
    folder = a_decoder("Mistral", sliding_window=WINDOW)
    bundle = graph_of(folder, tmp_path / "graph")
    assert all(check.passed for check in attention_checks(bundle, folder))
    model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "/model/layers.1/attn/GroupQueryAttention")
    next(item for item in node.attribute if item.name == "local_window_size").i = -1
    onnx.save(model, str(bundle.path / "model.onnx"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 9000.0
    (folder / "config.json").write_text(json.dumps(config))
    windows, tables = attention_checks(bundle, folder)
    assert not windows.passed
    assert windows.detail.endswith("wrong in 1")
    assert not tables.passed


@pytest.mark.parametrize("kind", ["Gemma2", "Gemma3", "Mistral", "Phi3", "Qwen3", "SmolLM3"])
def test_a_base_that_can_be_exported_is_found_so_before_its_training(a_decoder, kind):
    check_computable(a_decoder(kind, **WINDOWED[kind]))


def test_a_rotation_that_is_no_table_is_named(a_decoder):
    folder = a_decoder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": {**THETA, "rope_type": "spiral"}}))
    with pytest.raises(ModelError, match=r"the rotary scaling 'spiral' cannot be exported; .*yarn"):
        check_computable(folder)


def test_a_graph_that_would_compute_something_else_is_refused_before_the_training(a_decoder, monkeypatch):
    def without_rotation(_, attention):
        return {kind: (torch.ones(256, 16), torch.zeros(256, 16)) for kind in set(attention.tables)}

    monkeypatch.setattr("edgetune.export.decoder.rotary_tables", without_rotation)
    with pytest.raises(ModelError, match="would compute something else than transformers, after 48 tokens"):
        check_computable(a_decoder())


def test_planning_leaves_the_generator_of_random_numbers_alone(a_decoder):
    folder = a_decoder()
    torch.manual_seed(7)
    wanted = torch.rand(2)
    torch.manual_seed(7)
    check_computable(folder)
    assert torch.equal(torch.rand(2), wanted)
