from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.errors import CheckError, ModelError, RunError
from edgetune.lora import merge as merge_module
from edgetune.lora.adapter import attach, check_adapter, save
from edgetune.lora.merge import merge, merge_weight, merged_dtype
from edgetune.model.base import load_base, load_merged, load_tokenizer
from edgetune.recipe import LoraTable, ModelTable

# Plain PEFT, which some tests call themselves, asks transformers for a property that was renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


def make_adapter(base: Path, folder: Path, lora: LoraTable, **options: Any) -> Any:
    """A live model with an adapter whose B is not zero, saved in `folder`."""
    table = ModelTable(str(base), **{"compute_dtype": "float32", **options})
    torch.manual_seed(3)
    model = attach(load_base(table), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "magnitude" in name:
            parameter.data *= 1.25
    save(model, folder, table)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(16).view(1, 16)).logits.float()


def test_a_pair_is_folded_in_float32_and_scaled() -> None:
    base, a, b = torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2)
    assert torch.allclose(merge_weight(base, a, b, scaling=0.5), base + 0.5 * b @ a)
    assert merge_weight(base.bfloat16(), a, b, scaling=0.5).dtype == torch.bfloat16
    with pytest.raises(ModelError, match="does not fit"):
        merge_weight(base, b, a, scaling=1.0)


KINDS: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ("v_proj", "up_proj")}]


@pytest.mark.parametrize("options", KINDS)
def test_a_merge_on_the_original_base_equals_peft(tiny_base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4, **options), quantization="none")
    result = merge(tmp_path / "a", tiny_base, tmp_path / "m", merge_base="original")
    wanted = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "m/model.safetensors")
    assert result.dtype == "float32"
    assert result.quantized_tensors == 0
    assert "lm_head.weight" not in merged
    for name, tensor in merged.items():
        # One float32 sum in another order: a few units in the last place.
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("double", [True, False])
def test_a_merge_on_the_trained_base_computes_what_the_trained_4_bit_model_computes(
    tiny_base: Path, tmp_path: Path, double: bool, options: dict[str, Any]
) -> None:
    model = make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4, **options), double_quantization=double)
    result = merge(tmp_path / "a", tiny_base, tmp_path / "m")
    assert result.quantized_tensors == 14
    # float32 throughout: only the order of sums differs.
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)
    merge(tmp_path / "a", tiny_base, tmp_path / "o", merge_base="original")
    assert (logits(load_merged(tmp_path / "o")) - logits(model)).abs().max() > 1e-2


def test_a_trained_base_in_bfloat16_is_merged_on_the_values_it_had_in_training(tiny_base: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model = make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4, alpha=4.0), compute_dtype="bfloat16")
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    merged = load_file(tmp_path / "m/model.safetensors")
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    live = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    assert live.dtype == torch.bfloat16
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wanted = (live.float() + delta).detach()
    torch.testing.assert_close(merged["model.layers.1.mlp.down_proj.weight"], wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(merged["model.embed_tokens.weight"].bfloat16().float(), merged["model.embed_tokens.weight"])


def test_an_adapter_made_by_plain_peft_merges_with_patterns_and_a_whole_norm(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.0.self_attn.q_proj": 3},
        modules_to_save=["norm"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    merge(tmp_path / "a", tiny_base, tmp_path / "m", merge_base="original")
    merged = load_merged(tmp_path / "m")
    torch.testing.assert_close(logits(merged), logits(model.eval()), rtol=1e-4, atol=1e-5)


@pytest.fixture
def untied_base(tiny_base: Path, tmp_path: Path) -> Path:
    """tiny_base with an output head of its own, and biases."""
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_base, tmp_path / "untied"))
    others = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    model = AutoModelForCausalLM.from_pretrained(tiny_base, **others)
    torch.manual_seed(6)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, folder: Path, *, vocabulary: int | None = None, **config: Any) -> Any:
    """A model with an adapter of PEFT's own, each factor drawn, saved in `folder` as PEFT saves it.

    `vocabulary`: the embedding was resized to it before.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **config}
    plain = AutoModelForCausalLM.from_pretrained(base)
    if vocabulary is not None:
        plain.resize_token_embeddings(vocabulary)
    model = get_peft_model(plain, LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ".*(q_proj|lm_head)"},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "use_rslora": True, "exclude_modules": ["k_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "rank_pattern": {"embed_tokens": 2}},
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"model.layers.0.self_attn.q_proj": 8, "down_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "^model.layers.0.mlp.down_proj": 7},
        },
        {"target_modules": ["q_proj", "down_proj"], "bias": "all"},
        {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"},
        {"target_modules": "all-linear", "use_rslora": True, "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["gate_proj", "norm"]},
        {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.5},
    ],
    ids=[
        "head",
        "head by a regex",
        "head with DoRA",
        "ends saved whole",
        "one layer",
        "all but one",
        "embedding",
        "embedding and head",
        "patterns",
        "all biases",
        "biases of its own",
        "rsLoRA with DoRA",
        "matrices and a norm saved whole",
        "dropout",
    ],
)
def test_a_merge_computes_what_peft_computes(untied_base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    model = by_peft(untied_base, tmp_path / "a", **config)
    result = merge(tmp_path / "a", untied_base, tmp_path / "m", merge_base="original")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)
    assert result.peft_difference is not None
    assert result.peft_difference < 1e-5


TIED = r"ties to its other end .*; train without embed_tokens and lm_head in target_modules and modules_to_save"
WITHOUT_BASE = r"cannot be merged; train a plain LoRA instead"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, TIED),
        ({"target_modules": ["q_proj", "embed_tokens"]}, TIED),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, TIED),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, TIED),
        (
            {"target_modules": ["embed_tokens"], "use_dora": True},
            "DoRA of an embedding cannot be merged; train it without",
        ),
        ({"target_modules": ["q_proj"], "lora_bias": True}, WITHOUT_BASE),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}, WITHOUT_BASE),
        ({"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]}, WITHOUT_BASE),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "changed the base's weights"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_merged_is_refused_with_its_cure(
    tiny_base: Path, tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    by_peft(tiny_base, tmp_path / "a", **config)
    with pytest.raises(ModelError, match=complaint) as refusal:
        merge(tmp_path / "a", tiny_base, tmp_path / "m", merge_base="original")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], None])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_resized_vocabulary_is_merged_with_the_tokenizer_beside_it(
    tiny_base: Path, untied_base: Path, tmp_path: Path, is_tied: bool, saved: list[str] | None
) -> None:
    if is_tied and saved:
        pytest.skip("two ends that are trained apart cannot be tied: refused")
    base = tiny_base if is_tied else untied_base
    model = by_peft(base, tmp_path / "a", vocabulary=515, target_modules=["q_proj"], modules_to_save=saved)
    with pytest.raises(
        ModelError, match=r"vocabulary of 515 tokens .* no tokenizer lies beside it; save the tokenizer"
    ):
        merge(tmp_path / "a", base, tmp_path / "m", merge_base="original")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    tokenizer.save_pretrained(tmp_path / "a")
    merge(tmp_path / "a", base, tmp_path / "m", merge_base="original")
    merged = load_merged(tmp_path / "m")
    assert merged.config.vocab_size == 515
    assert len(load_tokenizer(tmp_path / "m")) == 515
    ids = torch.tensor([[3, 514, 7, 513, 512]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match=r"vocabulary of 515 tokens is another than the base's; merge it first"):
        check_adapter(tmp_path / "a", base)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_half_a_resized_vocabulary_is_refused(untied_base: Path, tmp_path: Path) -> None:
    by_peft(untied_base, tmp_path / "a", vocabulary=515, target_modules=["q_proj"])
    path = tmp_path / "a/adapter_model.safetensors"
    kept = {key: tensor for key, tensor in load_file(path).items() if "lm_head" not in key}
    save_file(kept, path)
    with pytest.raises(ModelError, match=r"embedding and head are not both in it; .*save_embedding_layers=True"):
        merge(tmp_path / "a", untied_base, tmp_path / "m", merge_base="original")


def test_a_fold_that_is_not_pefts_is_refused(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    monkeypatch.setattr(merge_module, "merge_weight", lambda base, a, b, **_: base + b @ a)
    with pytest.raises(CheckError, match=r"_proj.weight merged computes something else than PEFT"):
        merge(tmp_path / "a", tiny_base, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_pair_that_peft_would_leave_out_is_refused(untied_base: Path, tmp_path: Path) -> None:
    by_peft(untied_base, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match=r"changes .*v_proj.weight, which its target_modules leave out"):
        merge(tmp_path / "a", untied_base, tmp_path / "m", merge_base="original")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace(".layers.0.", ".layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda key: key.replace(".weight", ".mine.weight"),
    ],
    ids=[
        "compiled outside",
        "compiled inside",
        "a plain state dict",
        "without a prefix",
        "DDP",
        "compiled DDP",
        "FSDP with checkpointing",
        "an adapter with a name",
    ],
)
def test_names_that_other_wrappers_gave_are_read(untied_base: Path, tmp_path: Path, wrapped: Any) -> None:
    model = by_peft(untied_base, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({wrapped(key): tensor for key, tensor in load_file(path).items()}, path)
    merge(tmp_path / "a", untied_base, tmp_path / "m", merge_base="original")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNSLOTH_TARGETS = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    rf"(?:{'|'.join(LINEARS)}).*?)|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    rf"\.(?:{'|'.join(LINEARS)}))"
)
"""As an adapter's config has it where Unsloth chose the layers."""


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        (
            {
                "target_modules": LINEARS,
                "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M",
                "ensure_weight_tying": False,
            },
            ("training_args.bin", "README.md", "trainer_state.json", "optimizer.pt", "rng_state.pth"),
        ),
        (
            {
                "target_modules": UNSLOTH_TARGETS,
                "base_model_name_or_path": "unsloth/smollm2-135m-bnb-4bit",
                "auto_mapping": {
                    "base_model_class": "LlamaForCausalLM",
                    "parent_library": "transformers.models.llama.modeling_llama",
                    "unsloth_fixed": True,
                },
                "task_type": "CAUSAL_LM",
            },
            ("README.md",),
        ),
    ],
    ids=["a checkpoint of TRL's SFTTrainer", "Unsloth's save_pretrained"],
)
def test_adapters_laid_out_as_other_trainers_write_them_merge(
    tiny_base: Path, tmp_path: Path, config: dict[str, Any], beside: tuple[str, ...]
) -> None:
    model = by_peft(tiny_base, tmp_path / "a", target_modules=LINEARS)
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, tmp_path / "a")
    for name in beside:
        (tmp_path / "a" / name).write_bytes(b"not a pickle")
    merge(tmp_path / "a", tiny_base, tmp_path / "m", merge_base="original")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)


def test_a_head_saved_whole_under_its_adapters_name_is_read(untied_base: Path, tmp_path: Path) -> None:
    model = by_peft(untied_base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = {key.replace("lm_head.", "lm_head.modules_to_save.default."): t for key, t in load_file(path).items()}
    assert any("modules_to_save.default" in key for key in tensors)
    save_file(tensors, path)
    merge(tmp_path / "a", untied_base, tmp_path / "m", merge_base="original")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)


def test_two_adapters_in_a_file_are_refused(untied_base: Path, tmp_path: Path) -> None:
    by_peft(untied_base, tmp_path / "a", target_modules=["q_proj"])
    path = tmp_path / "a/adapter_model.safetensors"
    both = {key.replace(".weight", f".{name}.weight"): t.clone() for key, t in load_file(path).items() for name in "ab"}
    save_file(both, path)
    with pytest.raises(ModelError, match="twice, as of two adapters; save one alone"):
        merge(tmp_path / "a", untied_base, tmp_path / "m")


def test_a_weight_trained_whole_that_is_no_number_is_refused(untied_base: Path, tmp_path: Path) -> None:
    by_peft(untied_base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if "lm_head" in key)[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"lm_head\.weight holds NaN or infinity; train the adapter again"):
        merge(tmp_path / "a", untied_base, tmp_path / "m")


@pytest.mark.parametrize("config", [{"fine_tune_type": "lora", "num_layers": 2}, {"lora_parameters": {"rank": 8}}])
def test_an_adapter_of_mlx_lm_is_called_that(tiny_base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"an adapter of mlx-lm.*mlx_lm\.fuse"):
        merge(tmp_path, tiny_base, tmp_path / "m")


def test_a_folder_that_is_no_adapter_is_called_what_it_is(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a model, not an adapter; .*`edgetune export`"):
        merge(tiny_base, tiny_base, tmp_path / "m")
    for name in ("checkpoint-10", "checkpoint-20"):
        make_adapter(tiny_base, tmp_path / "outputs" / name, LoraTable(r=2))
    with pytest.raises(ModelError, match=r"adapters are in folders of it; give \S+checkpoint-10 or \S+checkpoint-20"):
        merge(tmp_path / "outputs", tiny_base, tmp_path / "m")


def test_the_folder_is_a_whole_model(tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    assert (tmp_path / "m/generation_config.json").is_file() == (tiny_base / "generation_config.json").is_file()
    model = load_merged(tmp_path / "m")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    text = "turn on the lamp"
    assert load_tokenizer(tmp_path / "m")(text).input_ids == load_tokenizer(tiny_base)(text).input_ids
    assert load_tokenizer(tmp_path / "m").chat_template == load_tokenizer(tiny_base).chat_template


def test_a_tokenizer_beside_the_adapter_goes_first(tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "a")
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    assert load_tokenizer(tmp_path / "m").chat_template == "{{ messages[0].content }}"


def test_a_chat_template_alone_beside_the_adapter_stands_in_for_the_bases(tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    (tmp_path / "a/chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    merged, base = load_tokenizer(tmp_path / "m"), load_tokenizer(tiny_base)
    assert merged.chat_template == "{{ messages[0].content }}"
    assert merged.get_vocab() == base.get_vocab()


def test_large_models_are_written_in_shards(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "one")
    monkeypatch.setattr(merge_module, "SHARD_BYTES", 100_000)
    merge(tmp_path / "a", tiny_base, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(load_merged(tmp_path / "one")), logits(load_merged(tmp_path / "many")))


def test_an_untied_head_is_kept_and_can_be_changed(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_base)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "untied")
    lora = LoraTable(r=4, target_modules=("q_proj", "lm_head"))
    model = make_adapter(tmp_path / "untied", tmp_path / "a", lora)
    merge(tmp_path / "a", tmp_path / "untied", tmp_path / "m")
    torch.testing.assert_close(logits(load_merged(tmp_path / "m")), logits(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_on_a_tied_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="tie"):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(ModelError, match="ties"):
        merge(tmp_path / "a", tiny_base, tmp_path / "m")


def test_merging_twice_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    with pytest.raises(ModelError, match="trained on other weights"):
        merge(tmp_path / "a", tmp_path / "m", tmp_path / "mm")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    model.save_pretrained(tmp_path / "b", save_embedding_layers=False)
    with pytest.raises(ModelError, match="merged model already"):
        merge(tmp_path / "b", tmp_path / "m", tmp_path / "mm")
    assert not (tmp_path / "mm").exists()


def test_an_adapter_trained_on_a_merged_model_merges_into_it(tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    second = make_adapter(tmp_path / "m", tmp_path / "b", LoraTable(r=4))
    merge(tmp_path / "b", tmp_path / "m", tmp_path / "mm")
    torch.testing.assert_close(logits(load_merged(tmp_path / "mm")), logits(second), rtol=1e-4, atol=1e-4)


def test_a_full_disk_leaves_the_old_merge_whole(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_module.Writer, "write", full)
    with pytest.raises(RunError, match="No space left"):
        merge(tmp_path / "a", tiny_base, tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


def test_progress_counts_tensors(tiny_base: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    events: list[Any] = []
    merge(tmp_path / "a", tiny_base, tmp_path / "m", progress=events.append)
    assert events[-1] == {"stage": "merge", "step": 20, "steps": 20}


def test_small_models_are_written_in_float32_and_large_ones_in_bfloat16(tiny_base: Path, tmp_path: Path) -> None:
    assert merged_dtype(135_000_000) == torch.float32
    assert merged_dtype(1_100_000_000) == torch.bfloat16
    make_adapter(tiny_base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", tiny_base, tmp_path / "m", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "m/model.safetensors").values()} == {torch.bfloat16}


def test_a_base_whose_file_holds_the_tied_head_too_is_written_once(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "both"))
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    make_adapter(base, tmp_path / "a", LoraTable(r=4))
    merge(tmp_path / "a", base, tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m/model.safetensors")
