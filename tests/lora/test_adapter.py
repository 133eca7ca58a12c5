from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.errors import ModelError
from edgetune.lora.adapter import attach, check_adapter, load, save
from edgetune.lora.read import named_base, read_adapter, read_record
from edgetune.model.base import hash_base, load_base
from edgetune.recipe import LoraTable, ModelTable

# Plain PEFT, which some tests call themselves, asks transformers for a property that was renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def table_of(base: Path, **options: Any) -> ModelTable:
    return ModelTable(str(base), **{"compute_dtype": "float32", **options})


def trained(base: Path, lora: LoraTable, **options: Any) -> Any:
    """A base with an adapter whose B is not zero."""
    torch.manual_seed(3)
    model = attach(load_base(table_of(base, **options)), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.mark.parametrize(
    ("record", "named"),
    [({"base": "org/ours", "revision": "v2"}, ("org/ours", "v2")), ({}, ("org/peft", "v1"))],
)
def test_the_record_of_an_adapter_names_its_base_before_peft_does(record: dict, named: tuple[str, str]) -> None:
    assert named_base({"base_model_name_or_path": "org/peft", "revision": "v1"}, record) == named
    assert named_base({}, {}) == (None, None)


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    save(trained(tiny_base, LoraTable(r=4, alpha=8.0)), folder, table_of(tiny_base))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(16).view(1, 16)).logits


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_only_the_adapter_is_trainable_in_float32_on_every_linear_but_the_head(
    tiny_base: Path, quantization: str, compute: str
) -> None:
    model = attach(load_base(table_of(tiny_base, quantization=quantization, compute_dtype=compute)), LoraTable(r=4))
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 2 * 7
    assert all("lora_" in name and parameter.dtype == torch.float32 for name, parameter in trainable.items())
    assert not any("lm_head" in name or "embed" in name for name in trainable)


def test_a_new_adapter_changes_nothing_until_it_is_trained(tiny_base: Path) -> None:
    base = load_base(table_of(tiny_base))
    before = logits(base)
    assert torch.equal(logits(attach(base, LoraTable()).eval()), before)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ("q_proj",)}])
def test_each_kind_of_adapter_gets_gradients_on_a_4_bit_base(tiny_base: Path, options: dict[str, Any]) -> None:
    model = trained(tiny_base, LoraTable(r=4, **options)).train()
    model(torch.arange(16).view(1, 16)).logits.square().mean().backward()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_base: Path) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = attach(load_base(table_of(tiny_base)), LoraTable(r=4), gradient_checkpointing=checkpointing)
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) is checkpointing
        model.train()(torch.arange(16).view(1, 16), use_cache=False).logits.square().mean().backward()
        return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_targets_that_the_base_does_not_have_are_refused_with_those_it_has(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"lora\.target_modules.*linears:.*q_proj"):
        attach(load_base(table_of(tiny_base)), LoraTable(target_modules=("query",)))


def test_a_saved_adapter_comes_back_whole_and_frozen(tiny_base: Path, adapter: Path) -> None:
    wanted = logits(trained(tiny_base, LoraTable(r=4, alpha=8.0)))
    model = load(load_base(table_of(tiny_base)), adapter)
    assert torch.equal(logits(model), wanted)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_folder_is_pefts_own_format_and_loads_in_plain_peft(tiny_base: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert {path.name for path in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "edgetune.json",
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, str(tiny_base))
    assert all(tensor.dtype == torch.float32 for tensor in load_file(adapter / "adapter_model.safetensors").values())
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapter)
    ours = load(load_base(table_of(tiny_base, quantization="none")), adapter)
    assert torch.equal(logits(plain), logits(ours))


def test_the_record_names_base_content_and_quantisation(tiny_base: Path, adapter: Path) -> None:
    record = read_record(adapter)
    assert record["base"] == str(tiny_base)
    assert record["base_sha256"] == hash_base(tiny_base)
    assert (record["quantization"], record["double_quantization"], record["compute_dtype"]) == ("nf4", True, "float32")


def test_an_adapter_made_by_plain_peft_is_gone_on_from_with_its_own_rank(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    plain.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
    model = attach(
        load_base(table_of(tiny_base, quantization="none")), LoraTable(r=16, init_from=str(tmp_path / "plain"))
    )
    assert torch.equal(logits(model.eval()), logits(plain.eval()))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    assert all(min(parameter.shape) == 3 and parameter.dtype == torch.float32 for parameter in trainable)
    save(model, tmp_path / "ours", table_of(tiny_base, quantization="none"))
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["lora_alpha"] == 5


def test_an_adapter_in_bfloat16_is_read_in_float32(tiny_base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    model = attach(load_base(table_of(tiny_base)), LoraTable(init_from=str(adapter)))
    assert all(part.dtype == torch.float32 for part in model.parameters() if part.requires_grad)


def other_base(tiny_base: Path, folder: Path, *, width: int = 64, layers: int = 2) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_base)
    config.hidden_size, config.num_hidden_layers = width, layers
    config.layer_types = None
    torch.manual_seed(9)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_an_adapter_of_a_wider_base_is_refused_with_both_shapes(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    other = other_base(tiny_base, tmp_path / "wide", width=128)
    with pytest.raises(ModelError, match=r"adapter of .*tiny.*down_proj\.weight is \(64, 128\) in it and \(128, 128\)"):
        check_adapter(adapter, other)
    with pytest.raises(ModelError, match=r"\(64, 128\) in it"):
        load(load_base(table_of(other)), adapter)


def test_an_adapter_of_a_deeper_base_is_refused_with_the_layer(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it changes model\.layers\.1\..*does not have"):
        check_adapter(adapter, other_base(tiny_base, tmp_path / "flat", layers=1))


def test_an_adapter_of_other_weights_of_the_same_shape_is_refused(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="trained on other weights"):
        check_adapter(adapter, other_base(tiny_base, tmp_path / "twin"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"peft_type": "IA3"}, "a IA3 adapter"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_dora": True}, "without a magnitude"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; save or copy"),
        ({"alpha_pattern": [2]}, r"adapter_config\.json: alpha_pattern is \[2\]"),
        ({"alpha_pattern": {"(q_proj": 2}}, "alpha_pattern is"),
        ({"rank_pattern": "q_proj"}, "rank_pattern is 'q_proj'"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern is"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5"),
    ],
)
def test_an_adapter_that_cannot_be_folded_is_refused(
    tiny_base: Path, adapter: Path, changes: dict[str, object], text: str
) -> None:
    change_config(adapter, **changes)
    with pytest.raises(ModelError, match=text):
        check_adapter(adapter, tiny_base)


def test_damaged_and_pickled_adapters_are_refused(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(ModelError, match="corrupted or truncated"):
        check_adapter(adapter, tiny_base)
    file.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin can run code"):
        check_adapter(adapter, tiny_base)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        check_adapter(adapter, tiny_base)


def test_half_a_pair_is_refused(tiny_base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"up_proj has lora_A only"):
        check_adapter(adapter, tiny_base)


def test_alpha_patterns_are_read_by_pefts_rule(tiny_base: Path, adapter: Path) -> None:
    change_config(adapter, alpha_pattern={"layers.1.self_attn.q_proj": 2.0})
    pairs = read_adapter(adapter, tiny_base).pairs
    assert pairs["model.layers.1.self_attn.q_proj.weight"].scaling == 0.5
    assert pairs["model.layers.0.self_attn.q_proj.weight"].scaling == 2.0


@pytest.mark.parametrize("alpha", ["sixteen", None, [1], float("inf"), float("nan")])
def test_an_alpha_that_is_no_number_is_refused(tiny_base: Path, adapter: Path, alpha: Any) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": alpha}))
    with pytest.raises(ModelError, match=r"alpha is .*, not a number"):
        read_adapter(adapter, tiny_base)


def test_weights_that_are_not_finite_are_refused(tiny_base: Path, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="lora_B holds NaN or infinity"):
        read_adapter(adapter, tiny_base)


@pytest.mark.parametrize("name", ["adapter_config.json", "edgetune.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_file_beside_the_weights_is_named(tiny_base: Path, adapter: Path, name: str, text: str) -> None:
    (adapter / name).write_text(text)
    with pytest.raises(ModelError, match=f"{name}: (cannot be read|holds no JSON object).*; save or copy"):
        read_adapter(adapter, tiny_base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compute_dtype": "float7"}, "compute_dtype: 'float7' is not 'auto' or 'float32'"),
        ({"compute_dtype": 32}, "compute_dtype: 32 is not"),
        ({"compute_dtype": None}, "compute_dtype: None is not"),
        ({"quantization": "int3"}, "quantization: 'int3' is not"),
        ({"double_quantization": "yes"}, "double_quantization: 'yes' is not"),
        ({"base": ["x"]}, "base: .* is not a text"),
    ],
)
def test_a_record_of_how_the_base_was_held_is_checked(adapter: Path, change: dict[str, Any], message: str) -> None:
    record = json.loads((adapter / "edgetune.json").read_text())
    (adapter / "edgetune.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ModelError, match=rf"edgetune\.json: {message}.*; save or copy the adapter again"):
        read_record(adapter)


def test_magnitudes_of_another_length_than_the_weight_are_refused(tiny_base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"] = torch.ones(7)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"up_proj: 7 magnitudes for 128 rows"):
        check_adapter(adapter, tiny_base)


def test_an_adapter_that_peft_cannot_load_is_one_line(tiny_base: Path, adapter: Path) -> None:
    change_config(adapter, r=3)
    with pytest.raises(ModelError, match=r"adapter: PEFT cannot load it: .*; save or copy the adapter again") as caught:
        load(load_base(table_of(tiny_base)), adapter)
    assert "\n" not in str(caught.value)
