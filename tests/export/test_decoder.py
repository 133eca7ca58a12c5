"""export/decoder.py and graph.py: what the builder makes of a checkpoint, with our bytes in it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai
import pytest
import torch
from graph_files import added_up
from onnx.external_data_helper import ExternalDataInfo

from edgetune.bundle.generation import build_bundle, export_folder
from edgetune.errors import ModelError
from edgetune.export.architecture import BUILDERS, check_architecture
from edgetune.export.decoder import build_decoder
from edgetune.export.read_graph import GraphWeights
from edgetune.model.on_device import expect_on_device
from edgetune.model.weights import find_tensors
from edgetune.quantize.grid import dequantize
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import ModelTable
from edgetune.runtime.grid import BundleGrid

FAST = ("Llama", "Qwen2", "Phi3")
KINDS = {
    "Gemma2ForCausalLM": "Gemma2",
    "Gemma3ForCausalLM": "Gemma3",
    "GemmaForCausalLM": "Gemma",
    "GraniteForCausalLM": "Granite",
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "Phi3ForCausalLM": "Phi3",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
    "SmolLM3ForCausalLM": "SmolLM3",
}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if KINDS[name] in FAST else pytest.mark.slow) for name in sorted(KINDS)],
)
def test_every_supported_architecture_is_exported_and_passes_verification(
    architecture, a_decoder, a_recipe, prompts, tmp_path
):
    result = export_folder(a_decoder(KINDS[architecture]), tmp_path / "bundle", a_recipe(), prompts=prompts)
    assert result.verification.passed
    assert {check.name for check in result.verification.checks} >= {"weight bytes", "logits against torch"}


def test_the_list_of_supported_architectures_is_the_tested_one():
    assert set(KINDS) == set(BUILDERS)


def test_an_unknown_architecture_is_named_with_the_known_ones_before_any_work(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel cannot be exported.*LlamaForCausalLM, MistralForCausalLM"):
        build_decoder(tmp_path, tmp_path / "out", precision="int4", grid=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architectures": []}'])
def test_a_config_that_says_nothing_is_a_model_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError):
        check_architecture(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_other_precisions_pass_verification_with_tied_and_separate_heads(
    precision, is_tied, a_decoder, a_recipe, prompts, tmp_path
):
    folder = a_decoder(tie_word_embeddings=is_tied)
    result = export_folder(folder, tmp_path / "bundle", a_recipe(precision=precision), prompts=prompts)
    assert result.bundle.precision == precision
    assert (result.bundle.grid is None) == precision.startswith("fp")


@pytest.mark.parametrize("settings", [{"symmetric": True}, {"block_size": 128}, {"head_bits": 4, "block_size": 16}])
def test_every_grid_passes_verification_at_widths_that_are_no_multiple_of_the_block(
    settings, a_decoder, a_recipe, prompts, tmp_path
):
    result = export_folder(a_decoder(), tmp_path / "bundle", a_recipe(**settings), prompts=prompts)
    assert result.verification.passed


def test_heads_that_the_attention_kernel_cannot_rotate_are_rotated_before_it(a_decoder, a_recipe, prompts, tmp_path):
    folder = a_decoder(head_dim=8, num_attention_heads=8, num_key_value_heads=4)
    assert export_folder(folder, tmp_path / "bundle", a_recipe(), prompts=prompts).verification.passed


def test_a_tied_head_and_embedding_share_their_bytes(a_decoder, tmp_path):
    build(a_decoder(), tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    spans = {
        tensor.name: (ExternalDataInfo(tensor).offset, ExternalDataInfo(tensor).length)
        for tensor in graph.initializer
        if "embed_tokens" in tensor.name and ".packed" in tensor.name
    }
    assert len(spans) == 2
    assert len(set(spans.values())) == 1
    assert {node.op_type for node in graph.node} >= {"GatherBlockQuantized", "MatMulNBits", "GroupQueryAttention"}


@pytest.mark.parametrize(
    ("precision", "is_tied"),
    [("int2", True), ("int4", True), ("int4", False), ("int8", True), ("fp16", True), ("fp32", True), ("fp32", False)],
)
def test_nothing_is_stored_twice_and_the_plan_knows_the_bytes(precision, is_tied, a_decoder, a_recipe, tmp_path):
    folder = a_decoder(tie_word_embeddings=is_tied)
    recipe = dataclasses.replace(a_recipe(precision=precision), model=ModelTable(base=str(folder)))
    build_decoder(folder, tmp_path, precision=precision, grid=grid_of(recipe.export))
    texts = sum(file.stat().st_size for file in folder.glob("tokenizer*.json"))
    assert added_up(tmp_path / "model.onnx") == expect_on_device(recipe).bundle_bytes - texts


def test_a_graph_says_how_wide_its_cache_is_and_leaves_open_how_long(a_decoder, tmp_path):
    """Who reads the graph alone, as lm-evaluation-harness does, can make the empty cache to begin with."""
    build(a_decoder(num_key_value_heads=2), tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    shapes = {
        tuple(size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
        if value.name.startswith(("past_key_values.", "present."))
    }
    assert shapes == {("batch_size", 2, "past_sequence_length", 32), ("batch_size", 2, "total_sequence_length", 32)}


def test_the_weights_in_the_graph_are_those_of_the_checkpoint_within_a_step(a_decoder, tmp_path):
    """Independent of grid.quantize: fused q, k, v compared with the rows of the checkpoint."""
    folder = a_decoder()
    build(folder, tmp_path)
    places = find_tensors(folder)
    weights = GraphWeights(tmp_path / "model.onnx", places)
    node = next(node for node in weights.nodes if node.name == "/model/layers.1/attn/qkv_proj/MatMul")
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    expected = torch.cat([tensors[name] for name in names]).float()
    matrix = weights.matrix(node)
    steps = matrix.scales.abs().repeat_interleave(32, 1)[:, :64]
    clipped = (dequantize(matrix) - expected).abs() / steps
    assert clipped.median() < 0.5
    assert clipped.max() < 3


@pytest.mark.parametrize("kind", FAST)
def test_gate_and_up_projection_are_one_product_on_the_grid_only(a_decoder, tmp_path, kind):
    folder = a_decoder(kind)
    products = {}
    for precision in ("int4", "fp32"):
        out = tmp_path / precision
        out.mkdir()
        build_decoder(
            folder, out, precision=precision, grid=BundleGrid(4, 32, False, 4, 8) if precision == "int4" else None
        )
        names = [node.name for node in onnx.load(str(out / "model.onnx"), load_external_data=False).graph.node]
        products[precision] = {name.split("/")[4] for name in names if "layers.0/mlp" in name and "_proj/" in name}
    assert products["int4"] == {"gate_up_proj", "down_proj"}
    assert products["fp32"] == {"down_proj", "gate_proj", "up_proj"}


def test_nothing_leaves_the_fast_path(a_decoder, tmp_path):
    """Float zero points or g_idx make onnxruntime unpack the whole matrix at every token."""
    build(a_decoder(), tmp_path)
    weights = GraphWeights(tmp_path / "model.onnx", find_tensors(a_decoder()))
    assert weights.float_matmuls() == []
    for node, (_, scales, zero_points), _ in weights.grid_nodes():
        assert len(node.inputs) == 4
        assert weights.array(zero_points).dtype == np.uint8
        assert weights.array(scales).dtype.name == "bfloat16"
        assert node.inputs[2].dtype == ir.DataType.FLOAT


def test_the_builder_stays_silent(a_decoder, tmp_path, capfd):
    folder = a_decoder()
    capfd.readouterr()
    build(folder, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_graph_names_the_builder_s_commit_and_not_that_of_a_repository_around_it(a_decoder, tmp_path):
    expected = f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"
    build(a_decoder(), tmp_path)
    assert onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).producer_version == expected


@pytest.mark.parametrize(("max_length", "length"), [(100, 100), (None, 256), (1000, 256)])
def test_rotary_tables_are_as_long_as_the_context_that_a_bundle_promises(
    max_length, length, a_decoder, a_recipe, tmp_path
):
    bundle, _ = build_bundle(a_decoder(), tmp_path, a_recipe(max_length=max_length), is_chat=True)
    assert bundle.context_length == length
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["context_length"] == config["search"]["max_length"] == length
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    assert {tuple(item.dims) for item in graph.initializer if item.name.endswith("_cache")} == {(length, 16)}


def test_a_bundle_whose_context_is_cut_passes_verification(a_decoder, a_recipe, prompts, tmp_path):
    result = export_folder(a_decoder(), tmp_path / "bundle", a_recipe(max_length=100), prompts=prompts)
    assert result.verification.passed


def test_a_tensor_that_is_missing_is_named(a_decoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = a_decoder()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        build(folder, tmp_path)


def build(folder: Path, out: Path) -> None:
    build_decoder(folder, out, precision="int4", grid=BundleGrid(4, 32, False, 4, 8))
