"""model/embedding.py: quantised vectors compute what their dequantised values do, and never exist as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.errors import ModelError, RecipeError
from edgetune.model import embedding
from edgetune.model.base import load_base, load_merged
from edgetune.model.embedding import (
    CODECS,
    QuantizedEmbedding,
    QuantizedHead,
    TokenVectors,
    embedding_as_trained,
    held_bytes,
)
from edgetune.recipe import ModelTable, parse_recipe

CPU = torch.device("cpu")
KINDS = sorted(CODECS)


class Largest(TorchDispatchMode):
    """The elements of the largest floating-point tensor that any operator makes in real memory."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point() and made.device.type != "meta":
            self.numel = max(self.numel, made.numel())
        return made


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, and one whose head is a tensor of its own."""
    if request.param == "tied":
        return tiny_base
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_base, tmp_path / "untied"))
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    model.save_pretrained(folder)
    return folder


def vectors_of(kind: Any, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> TokenVectors:
    vectors = TokenVectors(len(weight), weight.shape[1], kind, dtype)
    vectors.put(0, weight)
    return vectors


def table_of(base: Path, **options: Any) -> ModelTable:
    return ModelTable(str(base), **{"compute_dtype": "float32", "quantization": "none", **options})


@pytest.mark.parametrize("width", [64, 100, 192])
@pytest.mark.parametrize(("kind", "share"), [("int8", 0.51 / 127), ("nf4", 0.16)])
def test_a_value_moves_by_at_most_half_a_step_of_its_block(kind: Any, share: float, width: int) -> None:
    # The widest gap of NF4 is 0.304 of a block's largest value; scales in bfloat16 move it by 1/256 more.
    weight = torch.randn(300, width, generator=torch.Generator().manual_seed(0))
    found = embedding_as_trained(weight, kind, dtype=torch.float32, device=CPU)
    padded = nn.functional.pad(weight, (0, -width % 64)).view(300, -1, 64)
    largest = padded.abs().amax(2, keepdim=True).expand_as(padded).reshape(300, -1)[:, :width]
    assert ((found - weight).abs() <= (share + 1 / 256) * largest).all()
    assert not torch.equal(found, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_parts_and_halves_all_hold_the_same_values(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(150, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = embedding_as_trained(weight, kind, dtype=torch.bfloat16, device=CPU)
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    vectors = TokenVectors(150, 100, kind, torch.bfloat16)
    vectors.put(70, weight[70:])
    vectors.put(0, weight[:70])
    assert torch.equal(torch.cat([part for _, part in vectors.parts()]), whole)
    ids = torch.tensor([149, 0, 70, 70, 3])
    assert torch.equal(vectors.rows(ids), whole[ids])
    assert vectors.rows(ids[:0]).shape == (0, 100)
    assert vectors.codes.nbytes + vectors.scales.nbytes == held_bytes(kind, 150, 100)


def test_a_vector_of_zeros_stays_one() -> None:
    for kind in KINDS:
        found = embedding_as_trained(torch.zeros(2, 64), kind, dtype=torch.float32, device=CPU)  # type: ignore[arg-type]
        assert torch.equal(found, torch.zeros(2, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_and_its_gradient_are_those_of_a_linear_with_the_same_values(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    weight, bias = torch.randn(150, 96), torch.randn(150)
    vectors = vectors_of(kind, weight)
    plain = nn.Linear(96, 150)
    plain.weight.data, plain.bias.data = torch.cat([part for _, part in vectors.parts()]), bias
    results = []
    for head in (plain, QuantizedHead(vectors, nn.Parameter(bias))):
        states = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = head(states)
        logits.square().sum().backward()
        results.append((logits.detach(), states.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)  # float32, other order of sums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_computes_what_a_plain_one_with_the_dequantised_values_computes(
    base: Path, kind: Any, dtype: Any
) -> None:
    model = load_base(table_of(base, embedding_quantization=kind, compute_dtype=dtype))
    plain, original = load_base(table_of(base, compute_dtype=dtype)), load_merged(base)
    for which in ("get_input_embeddings", "get_output_embeddings"):
        end, weight = getattr(plain, which)(), getattr(original, which)().weight
        end.weight.data = embedding_as_trained(weight, kind, dtype=end.weight.dtype, device=CPU)
    ids = torch.arange(5, 40)[None]
    assert torch.equal(model.get_input_embeddings()(ids), plain.get_input_embeddings()(ids))
    with torch.no_grad():
        found, expected = model(ids).logits, plain(ids).logits
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - load_base(table_of(base, compute_dtype=dtype))(ids).logits).abs().max() > 1e-3


def test_tied_ends_share_their_vectors_and_others_do_not(tiny_base: Path, base: Path) -> None:
    model = load_base(table_of(base, embedding_quantization="int8", quantization="nf4"))
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    is_shared = model.get_input_embeddings().vectors is model.get_output_embeddings().vectors
    assert is_shared == (base == tiny_base)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(type(module).__name__ == "Linear4bit" for module in model.modules()) == 14


def test_loading_never_makes_a_whole_embedding(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    with Largest() as largest:
        load_base(table_of(tiny_base, embedding_quantization="int8", quantization="nf4"))
    assert 0 < largest.numel <= 128 * 64 < 512 * 64  # an MLP's matrix


def test_what_a_class_does_beside_looking_up_stays(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    for file in tiny_base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "gemma")
    ids = torch.arange(30).view(2, 15)
    found, expected = (
        load_base(table_of(tmp_path / "gemma", embedding_quantization=kind))(ids).logits for kind in ("int8", "none")
    )
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)  # eight bits; without the scale all is another
    assert load_base(table_of(tmp_path / "gemma"))._keys_to_ignore_on_load_missing is not None


def test_a_file_that_does_not_fit_the_config_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    with pytest.raises(ModelError, match=r"embed_tokens.weight is \(512, 64\), config.json asks for \(500, 64\)"):
        load_base(table_of(folder, embedding_quantization="int8"))


def test_a_merged_model_is_loaded_plain(tiny_base: Path) -> None:
    assert isinstance(load_merged(tiny_base).get_input_embeddings(), nn.Embedding)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("lora.train_embeddings=true", r"lora\.train_embeddings: trains what"),
        ('model.task="classification"', "decoders"),
    ],
)
def test_what_needs_the_plain_ones_is_refused(setting: str, complaint: str) -> None:
    text = '[model]\nbase = "x"\nembedding_quantization = "int8"\n[data]\ntrain = "y"\n'
    with pytest.raises(RecipeError, match=complaint):
        parse_recipe(text, source="r.toml", overrides=[setting])
