from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgetune.errors import ModelError
from edgetune.lora.adapter import attach
from edgetune.model import base as base_module
from edgetune.model.base import (
    base_folder,
    check_base,
    embedding_rows,
    empty_model,
    hash_base,
    load_base,
    load_merged,
    load_tokenizer,
    padding_id,
    resolve_base,
)
from edgetune.model.nf4 import as_trained, hold_unpacked, quantized_linears
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.recipe import LoraTable, ModelTable


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def linear4bits(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}


def test_a_folder_is_its_own_base(tiny_base: Path) -> None:
    assert resolve_base(str(tiny_base)) == tiny_base
    assert check_base(tiny_base)["model_type"] == "llama"


def test_the_embedded_base_lies_in_the_package() -> None:
    assert resolve_base("edgetune:nano").name == "nano"


def test_the_base_of_a_recipe_is_what_its_table_says(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(ModelTable(str(tiny_base))) == tiny_base
    asked: list[object] = []
    monkeypatch.setattr(base_module, "fetch", lambda *given, **options: asked.extend([given, options]))
    base_folder(ModelTable("org/name", revision="v2", trust_remote_code=True))
    assert asked == [("org/name", "v2"), {"trust_remote_code": True}]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "edgetune:giant", "a/b/c"])
def test_a_base_that_is_nowhere_is_refused_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "fetch", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="no such folder"):
        resolve_base(name)


def test_a_file_is_no_base(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve_base(str(tiny_base / "config.json"))


def test_of_a_hub_model_only_safe_files_are_fetched(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    import huggingface_hub

    asked = {}

    def fake(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tiny_base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert resolve_base("org/name", "v1") == tiny_base
    assert asked["repo"] == "org/name"
    assert asked["revision"] == "v1"

    def is_fetched(file: str) -> bool:
        return any(fnmatch.fnmatch(file, pattern) for pattern in asked["allow_patterns"]) and not any(
            fnmatch.fnmatch(file, pattern) for pattern in asked["ignore_patterns"]
        )

    assert all(map(is_fetched, ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json", "merges.txt"]))
    refused = ["pytorch_model.bin", "modeling_x.py", "original/consolidated.00.pth", "consolidated.safetensors"]
    assert not any(map(is_fetched, refused))
    resolve_base("org/name", trust_remote_code=True)
    assert is_fetched("modeling_x.py")


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    if name == "ConnectionError":
        return ConnectionError("no route")
    kind = getattr(errors, name)
    error = kind.__new__(kind, "said no")  # their constructors want a response of whichever HTTP library is in use
    error.args = ("said no",)
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("RepositoryNotFoundError", "HF_TOKEN"),
        ("GatedRepoError", "accept it"),
        ("RevisionNotFoundError", "no revision"),
        ("LocalEntryNotFoundError", "local folder"),
        ("HfHubHTTPError", "local folder"),
        ("OfflineModeIsEnabled", "local folder"),
        ("ConnectionError", "local folder"),
    ],
)
def test_a_hub_that_does_not_answer_is_an_error_with_a_cure(
    error: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise hub_error(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=text):
        resolve_base("org/name")


def test_a_pickle_checkpoint_is_refused_and_safetensors_named(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors"):
        check_base(copy)


def test_missing_weights_and_a_missing_config_are_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        check_base(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_base(copy)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_damaged_config_is_named(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        check_base(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": 2**63}, "pad_token_id is 9223372036854775808"),
        ({"pad_token_id": -2}, "pad_token_id is -2"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id is 'x'"),
        ({"bos_token_id": True}, "bos_token_id is True"),
        ({"max_position_embeddings": "512"}, "max_position_embeddings is '512'"),
        ({"max_position_embeddings": 10**400}, "max_position_embeddings is 10{59}\\.\\.\\."),
    ],
)
def test_a_number_in_a_config_that_means_nothing_is_refused(copy: Path, change: dict, message: str) -> None:
    change_config(copy, **change)
    with pytest.raises(ModelError, match=rf"config\.json: {message}; fetch or copy the model again"):
        check_base(copy)


@pytest.mark.parametrize(
    ("change", "message"), [({}, "cannot be read"), ({"vocab_size": "x"}, "no model can be made from it: .*vocab_size")]
)
def test_a_config_that_keeps_the_tokenizer_from_loading_is_blamed(copy: Path, change: dict, message: str) -> None:
    change_config(copy, **change)
    if not change:
        (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        load_tokenizer(copy)


def test_an_unknown_architecture_is_refused_with_close_names(copy: Path) -> None:
    change_config(copy, model_type="qwen22")
    with pytest.raises(ModelError, match=r"'qwen22' is not a decoder.*qwen2"):
        check_base(copy)
    change_config(copy, model_type="bert_but_not_quite", auto_map={"AutoModel": "x.Y"})
    with pytest.raises(ModelError, match="trust_remote_code"):
        check_base(copy)


def test_a_base_that_is_quantised_already_is_refused(copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantised already"):
        check_base(copy)


def test_a_config_that_asks_for_more_layers_than_there_are_is_refused(copy: Path) -> None:
    change_config(copy, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"weights that are not there, e\.g\. model\.layers\.2"):
        load_base(ModelTable(str(copy)))


def test_a_config_of_another_width_is_refused(copy: Path) -> None:
    change_config(copy, intermediate_size=256)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(ModelTable(str(copy), quantization="none"))


def test_a_tokenizer_is_loaded_and_a_damaged_one_refused(copy: Path) -> None:
    assert load_tokenizer(copy)("turn on").input_ids
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer can be read"):
        load_tokenizer(copy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_linears_but_the_head_are_held_in_nf4_and_nothing_is_trainable(tiny_base: Path, dtype: str) -> None:
    model = load_base(ModelTable(str(tiny_base), compute_dtype=dtype))
    names = set(linear4bits(model))
    assert len(names) == 14
    assert names == set(quantized_linears(empty_model(tiny_base)))
    assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    assert model.model.norm.weight.dtype == getattr(torch, dtype)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_an_unquantised_base_has_the_bytes_of_the_file(tiny_base: Path) -> None:
    model = load_base(ModelTable(str(tiny_base), quantization="none", compute_dtype="float32"))
    places = find_tensors(tiny_base)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, read_tensor(places[name]).float())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    merged = load_merged(tiny_base)
    assert merged.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.bfloat16])
def test_as_trained_equals_what_the_live_layer_dequantises_to(
    copy: Path, dtype: str, double: bool, file_dtype: torch.dtype
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(1)
    source = load_merged(copy)
    for parameter in source.parameters():
        parameter.data = (parameter.data * torch.rand_like(parameter) * 3).to(file_dtype)
    source.to(file_dtype).save_pretrained(copy)
    model = load_base(ModelTable(str(copy), compute_dtype=dtype, double_quantization=double))
    places = find_tensors(copy)
    for name, layer in linear4bits(model).items():
        live = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        ours = as_trained(
            read_tensor(places[f"{name}.weight"]),
            double_quantization=double,
            dtype=getattr(torch, dtype),
            device=torch.device("cpu"),
        )
        assert ours.dtype == live.dtype
        assert torch.equal(ours, live), name


def test_a_4_bit_base_computes_the_same_in_eval_and_training_mode_and_keeps_its_gradient(tiny_base: Path) -> None:
    """bitsandbytes repacks weights at the first evaluation on some CPUs; its packed product has no gradient."""
    model = load_base(ModelTable(str(tiny_base), compute_dtype="float32"))
    ids = torch.arange(24).view(1, 24)
    embeds = model.get_input_embeddings()(ids)

    def gradient() -> torch.Tensor:
        inputs = embeds.clone().requires_grad_(True)
        model.train()(inputs_embeds=inputs).logits.square().mean().backward()
        assert inputs.grad is not None
        return inputs.grad

    before = gradient()
    trained = model(ids).logits
    with torch.no_grad():
        evaluated = model.eval()(ids).logits
    assert torch.equal(trained, evaluated)
    assert torch.equal(before, gradient())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_an_unpacked_base_computes_the_same_bit_for_bit(tiny_base: Path, dtype: str, with_adapter: bool) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_base(ModelTable(str(tiny_base), compute_dtype=dtype))
    if with_adapter:
        model = attach(model, LoraTable())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start
                torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    ids = torch.arange(24).view(2, 12)
    asked = (ids, ids[:, :1])  # one token alone goes another way in bitsandbytes
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        packed = [model(one).logits for one in asked]
        assert hold_unpacked(model)
        assert not any(isinstance(module, Linear4bit) for module in model.modules())
        assert all(torch.equal(model(one).logits, logits) for one, logits in zip(asked, packed, strict=True))


def test_a_base_too_large_to_unpack_stays_packed(tiny_base: Path) -> None:
    model = load_base(ModelTable(str(tiny_base), compute_dtype="bfloat16"))
    weights = sum(layer.in_features * layer.out_features for layer in linear4bits(model).values())
    assert not hold_unpacked(model, most_bytes=2 * weights - 1)
    assert linear4bits(model)
    assert hold_unpacked(model, most_bytes=2 * weights)


def test_loading_is_silent_in_a_fresh_process(tiny_base: Path) -> None:
    """bitsandbytes logs at its first import, which a process does once; and it would load torch's compiler."""
    code = (
        "from edgetune.model.base import load_base, load_tokenizer; from edgetune.recipe import ModelTable;"
        "from edgetune.lora.adapter import attach; from edgetune.recipe import LoraTable;"
        f"base = {str(tiny_base)!r}; attach(load_base(ModelTable(base)), LoraTable()); load_tokenizer(base);"
        "import sys; assert 'torch._inductor.compile_fx' not in sys.modules, 'the compiler takes a second'"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_hash_of_a_base_follows_its_bytes(copy: Path, tiny_base: Path) -> None:
    assert hash_base(copy) == hash_base(tiny_base)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert hash_base(copy) != hash_base(tiny_base)


def test_a_pad_token_that_the_model_has_no_vector_for_is_not_padded_with(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    assert padding_id(tokenizer) == tokenizer.pad_token_id == 1
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    again = load_tokenizer(copy)
    assert again.pad_token_id == embedding_rows(again) == 512
    assert padding_id(again) == 0
