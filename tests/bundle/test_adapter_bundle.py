"""bundle/adapter_bundle.py: the base once, adapters beside it, each shown to be the right one."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgetune.bundle import adapter_bundle as stage
from edgetune.bundle.adapter_bundle import add_adapter, check_name, export_adapter
from edgetune.errors import BundleError, CheckError, ModelError, RecipeError, RunError
from edgetune.export.adapter_inputs import read_arrays
from edgetune.lora.adapter import attach, save
from edgetune.lora.merge import merge
from edgetune.model.base import load_base
from edgetune.recipe import DataTable, LoraTable, ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import GRAPH, MANIFEST, check_hashes, choose_adapter, open_bundle
from edgetune.runtime.decoder import Decoder
from edgetune.runtime.logits import Logits

IDS = list(range(5, 25))
SLOW = ("Gemma", "Gemma2", "Gemma3", "Granite", "Mistral", "Qwen3", "SmolLM3")


def make_run(
    base: Path, path: Path, *, seed: int = 3, std: float = 0.05, quantization: str = "none", **lora: object
) -> RunDir:
    """A run folder with an adapter whose B is not zero."""
    run_dir = RunDir(path).create()
    table = ModelTable(str(base), compute_dtype="float32", quantization=quantization)
    torch.manual_seed(seed)
    model = attach(load_base(table), LoraTable(**{"r": 4, **lora}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    save(model, run_dir.adapter, table)
    return run_dir


def untied(base: Path, folder: Path) -> Path:
    """The base with an output head of its own, whose embedding may be a target."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(base, folder)
    AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def the_recipe(tiny_base, tiny_rows) -> Recipe:
    recipe = Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), eval_fraction=0.3),
        name="first",
    )
    return dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, calibration_rows=8))


@pytest.fixture(scope="session")
def first_run(tiny_base, tmp_path_factory) -> RunDir:
    return make_run(tiny_base, tmp_path_factory.mktemp("keep") / "first")


@pytest.fixture(scope="session")
def exported_once(the_recipe, first_run, tiny_base):
    return export_adapter(the_recipe, first_run, tiny_base)


@pytest.fixture
def bundle(exported_once, tmp_path) -> Path:
    """A copy of the bundle of `first_run`."""
    shutil.copytree(exported_once.bundle.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def logits(path: Path, adapter: str) -> np.ndarray:
    return Logits(choose_adapter(open_bundle(path), adapter)).logits(IDS)


def test_the_bundle_holds_base_and_adapter_and_the_proof_of_both(bundle):
    found = open_bundle(bundle)
    check_hashes(found)
    assert (list(found.adapters), found.adapter) == (["first"], "first")
    assert "first.onnx_adapter" in found.files
    assert found.verified["passed"] is found.adapters["first"].verified["passed"] is True
    names = {check["name"] for check in found.verified["checks"]}
    assert names >= {
        "weight bytes",
        "base's logits against torch",
        "adapter names and shapes",
        "logits against torch",
        "adapter's effect",
    }


@pytest.mark.parametrize("part", ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj"])
def test_each_projection_has_inputs_of_its_own_whose_defaults_have_rank_0(bundle, part):
    graph = onnx.load(str(bundle / GRAPH), load_external_data=False).graph
    name = f"model.layers.0.{part}.lora_A.MatMul.weight"
    assert name in {item.name for item in graph.input}
    assert {tuple(item.dims) for item in graph.initializer if item.name == name} == {(64, 0)}
    arrays = read_arrays(bundle / "first.onnx_adapter")
    assert arrays[name].shape == (64, 4)
    assert arrays[name.replace("lora_A", "lora_B")].shape[0] == 4


def test_plain_onnxruntime_genai_loads_and_switches_the_adapter(bundle):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    model = og.Model(str(bundle))
    adapters = og.Adapters(model)
    adapters.load(str(bundle / "first.onnx_adapter"), "mine")

    def last_logits(adapter: str | None) -> np.ndarray:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=64)
        generator = og.Generator(model, params)
        if adapter:
            generator.set_active_adapter(adapters, adapter)
        generator.append_tokens(IDS)
        return np.array(generator.get_logits()).reshape(-1)

    base, mine = last_logits(None), last_logits("mine")
    assert np.allclose(mine, logits(bundle, "first")[-1], atol=1e-4)
    assert np.allclose(base, logits(bundle, "none")[-1], atol=1e-4)
    assert not np.allclose(base, mine, atol=1e-2)


def test_the_base_without_an_adapter_is_the_bundle_of_the_base(bundle, the_recipe, tiny_base, tmp_path):
    """The same weights, merged with nothing: an adapter whose B is zero."""
    from edgetune.bundle.generation import build_bundle, training_rows
    from edgetune.quantize.decoder import quantize_decoder
    from edgetune.quantize.precisions import grid_of

    zero = make_run(tiny_base, tmp_path / "zero", std=0.0)
    merge(zero.adapter, tiny_base, tmp_path / "merged")
    recipe = dataclasses.replace(the_recipe, export=dataclasses.replace(the_recipe.export, repair_steps=0))
    rows = training_rows(tmp_path / "merged", recipe, tmp_path / "cache")
    quantized = quantize_decoder(tmp_path / "merged", tmp_path / "grid", recipe, grid_of(recipe.export), rows=rows)
    (tmp_path / "plain").mkdir()
    build_bundle(tmp_path / "merged", tmp_path / "plain", recipe, is_chat=True, quantized=quantized)
    assert (tmp_path / "plain/model.onnx.data").read_bytes() == (bundle / "model.onnx.data").read_bytes()
    assert np.allclose(Logits(tmp_path / "plain").logits(IDS), logits(bundle, "none"), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("Phi3", {"target_modules": ("qkv_proj", "gate_up_proj", "down_proj")}),
        ("Qwen2", {"use_rslora": True}),
        ("Llama", {"target_modules": ("v_proj", "up_proj")}),
        *[pytest.param(kind, {}, marks=pytest.mark.slow) for kind in SLOW],
    ],
)
def test_joined_and_split_projections_take_adapters(kind, lora, a_decoder, the_recipe, tmp_path):
    base = a_decoder(kind)
    run_dir = make_run(base, tmp_path / "run", **lora)
    recipe = dataclasses.replace(the_recipe, model=ModelTable(base=str(base)))
    assert export_adapter(recipe, run_dir, base).verification.passed


def test_a_head_of_its_own_takes_an_adapter(a_decoder, the_recipe, tmp_path):
    base = a_decoder("Llama", tie_word_embeddings=False)
    run_dir = make_run(base, tmp_path / "first", target_modules=("lm_head",))
    recipe = dataclasses.replace(the_recipe, model=ModelTable(base=str(base)))
    result = export_adapter(recipe, run_dir, base)
    assert set(read_arrays(result.bundle.path / "first.onnx_adapter")) == {
        "lm_head.lora_A.MatMul.weight",
        "lm_head.lora_B.MatMul.weight",
    }


def test_the_base_is_put_on_the_grid_as_training_held_it(the_recipe, tiny_base, tmp_path):
    """In NF4 with the adapter's numbers on top, which is what the fine-tune was; on request the 16-bit original."""
    run_dir = make_run(tiny_base, tmp_path / "run", quantization="nf4")
    found = {}
    for merge_base in ("trained", "original", "auto"):
        table = dataclasses.replace(the_recipe.export, merge_base=merge_base)
        recipe = dataclasses.replace(the_recipe, export=table)
        out = tmp_path / merge_base
        assert export_adapter(recipe, run_dir, tiny_base, out=out).verification.passed
        found[merge_base] = (out / "model.onnx.data").read_bytes()
    assert found["auto"] == found["trained"] != found["original"]
    for merge_base in ("trained", "original"):
        assert add_adapter(the_recipe, run_dir, tiny_base, tmp_path / merge_base, name="again").verification.passed


def test_a_second_adapter_is_added_and_each_answers_when_it_is_asked_for(bundle, the_recipe, tiny_base, tmp_path):
    before = {name: logits(bundle, name) for name in ("first", "none")}
    graph = (bundle / GRAPH).read_bytes()
    result = add_adapter(the_recipe, make_run(tiny_base, tmp_path / "second", seed=9), tiny_base, bundle)
    assert result.verification.passed
    found = open_bundle(bundle)
    check_hashes(found)
    assert (list(found.adapters), found.adapter) == (["first", "second"], "first")
    assert (bundle / GRAPH).read_bytes() == graph
    assert {path.name for path in bundle.iterdir()} == {*found.files, MANIFEST}
    for name, wanted in before.items():
        assert np.array_equal(logits(bundle, name), wanted)
    decoder = Decoder(bundle)
    answers = {}
    for name in ("first", "second", "none", "first"):
        decoder.switch_adapter(name)
        answer = decoder.generate(IDS, max_new_tokens=8).token_ids
        assert answers.setdefault(name, answer) == answer
        assert answer[0] == logits(bundle, name)[-1].argmax()
    assert Decoder(bundle).generate(IDS, max_new_tokens=8).token_ids == answers["first"]
    assert Decoder(bundle, adapter="second").generate(IDS, max_new_tokens=8).token_ids == answers["second"]


def test_an_adapter_of_another_rank_and_of_fewer_projections_fits(bundle, the_recipe, tiny_base, tmp_path):
    run_dir = make_run(tiny_base, tmp_path / "run", r=2, target_modules=("v_proj",))
    assert add_adapter(the_recipe, run_dir, tiny_base, bundle).verification.passed


def test_an_adapter_is_replaced_only_by_force(bundle, the_recipe, tiny_base, tmp_path):
    run_dir = make_run(tiny_base, tmp_path / "first", seed=9)
    with pytest.raises(RunError, match=r"has an adapter first already; replace it with --force"):
        add_adapter(the_recipe, run_dir, tiny_base, bundle)
    old = logits(bundle, "first")
    add_adapter(the_recipe, run_dir, tiny_base, bundle, force=True)
    check_hashes(open_bundle(bundle))
    assert not np.allclose(logits(bundle, "first"), old)


def test_an_adapter_with_projections_that_the_graph_has_no_inputs_for_is_refused(the_recipe, tiny_base, tmp_path):
    narrow = make_run(tiny_base, tmp_path / "narrow", target_modules=("q_proj",))
    bundle = export_adapter(the_recipe, narrow, tiny_base).bundle.path
    with pytest.raises(ModelError, match=r"changes model\.layers\.0\.\S+, for which the graph has no inputs"):
        add_adapter(the_recipe, make_run(tiny_base, tmp_path / "wide"), tiny_base, bundle)
    assert list(open_bundle(bundle).adapters) == ["narrow"]


def test_an_adapter_of_another_base_is_refused(bundle, the_recipe, a_decoder, tmp_path):
    other = a_decoder("Llama")
    recipe = dataclasses.replace(the_recipe, model=ModelTable(base=str(other)))
    with pytest.raises(ModelError, match=r"its base is .* with other weights than"):
        add_adapter(recipe, make_run(other, tmp_path / "run"), other, bundle)


def test_a_run_with_another_system_message_is_refused(bundle, the_recipe, tiny_base, tmp_path):
    recipe = dataclasses.replace(the_recipe, data=dataclasses.replace(the_recipe.data, system="Be brief."))
    with pytest.raises(RecipeError, match="renders prompts otherwise"):
        add_adapter(recipe, make_run(tiny_base, tmp_path / "run"), tiny_base, bundle)


def test_a_bundle_without_inputs_for_adapters_is_refused(tiny_bundle, the_recipe, first_run, tiny_base):
    with pytest.raises(BundleError, match=r"takes no adapters: .*; `edgetune export-adapter RUN` makes one"):
        add_adapter(the_recipe, first_run, tiny_base, tiny_bundle)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "DoRA rescales"),
        ({"train_embeddings": True}, "trained whole"),
        ({"target_modules": ("q_proj", "embed_tokens")}, "changes the embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_what_is_more_than_a_low_rank_branch_is_refused_with_a_cure(lora, message, the_recipe, tiny_base, tmp_path):
    base = untied(tiny_base, tmp_path / "base") if "target_modules" in lora else tiny_base
    run_dir = make_run(base, tmp_path / "run", **lora)
    with pytest.raises(ModelError, match=message) as caught:
        export_adapter(the_recipe, run_dir, base)
    assert "merge it instead" in str(caught.value)
    assert not run_dir.adapter_bundle.exists()


def test_float_precisions_are_refused(the_recipe, first_run, tiny_base, tmp_path):
    recipe = dataclasses.replace(the_recipe, export=dataclasses.replace(the_recipe.export, precision="fp16"))
    with pytest.raises(RecipeError, match="on the grid only"):
        export_adapter(recipe, first_run, tiny_base, out=tmp_path / "bundle")


def test_an_adapter_without_effect_fails_and_is_left_aside(the_recipe, tiny_base, tmp_path):
    run_dir = make_run(tiny_base, tmp_path / "run", std=0.0)
    with pytest.raises(CheckError, match="adapter's effect") as caught:
        export_adapter(the_recipe, run_dir, tiny_base)
    assert caught.value.exit_code == 5
    assert open_bundle(run_dir.path / "adapter-bundle.failed").verified["passed"] is False


@pytest.mark.parametrize("damage", ["transposed", "scaled", "renamed", "missing"])
def test_a_wrong_adapter_file_fails_and_leaves_the_bundle_alone(
    damage, bundle, the_recipe, tiny_base, tmp_path, monkeypatch
):
    write, before = stage.write_adapter, {path.name: path.read_bytes() for path in bundle.iterdir()}

    def spoilt(path: Path, arrays: dict[str, np.ndarray]) -> None:
        arrays = dict(arrays)
        name = next(name for name in arrays if "o_proj.lora_B" in name)
        if damage == "transposed":
            arrays[name] = np.ascontiguousarray(arrays[name].T)
        elif damage == "scaled":
            arrays[name] = arrays[name] * 2
        else:
            value = arrays.pop(name)
            if damage == "renamed":
                arrays[name.replace("layers.0", "layers.7")] = value
        write(path, arrays)

    monkeypatch.setattr(stage, "write_adapter", spoilt)
    with pytest.raises(CheckError, match=r"adapter n(umbers|ames and shapes)"):
        add_adapter(the_recipe, make_run(tiny_base, tmp_path / "second", seed=9), tiny_base, bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden"])
def test_a_name_that_can_be_no_file_s_is_refused(name):
    with pytest.raises(RecipeError, match="cannot be an adapter's name"):
        check_name(name)


def test_the_name_of_the_base_alone_is_refused():
    with pytest.raises(RecipeError, match="'none' means the base alone; choose another name"):
        check_name("none")


def test_an_unknown_adapter_is_named_with_those_there(bundle):
    with pytest.raises(BundleError, match=r"has no adapter 'third'; it has first, none"):
        Decoder(bundle, adapter="third")


def test_a_damaged_adapter_file_is_one_clear_error(bundle):
    path = bundle / "first.onnx_adapter"
    path.write_bytes(b"\0" * path.stat().st_size)
    for use in (Decoder, Logits):
        with pytest.raises(BundleError, match="copy or export it again"):
            use(bundle)


@pytest.mark.parametrize(
    ("key", "value"), [("adapters", {"x": {}}), ("adapter", "x"), ("adapters", []), ("adapter", [])]
)
def test_a_manifest_with_damaged_adapters_is_one_clear_error(bundle, key, value):
    path = bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle)
