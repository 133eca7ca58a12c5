"""Random decoders and classifiers small enough to round and export in seconds: fixtures of many folders of tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from encoder_families import ENCODER_CONFIGS, SPECS

from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe

WINDOW = 24
THETA = {"rope_theta": 10000.0}
WINDOWED = {
    "Gemma2": {"sliding_window": WINDOW},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "Mistral": {"sliding_window": WINDOW},
    "Phi3": {"sliding_window": WINDOW},
    "Qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "SmolLM3": {"sliding_window": WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0]},
}
"""Settings of each kind of decoder whose layers look at WINDOW tokens."""


@pytest.fixture(scope="session")
def prompts() -> list[list[dict[str, str]]]:
    """What bundles are verified on."""
    return [[{"role": "user", "content": f"turn on lamp {number} in the kitchen"}] for number in range(24)]


@pytest.fixture
def a_recipe() -> Callable[..., Recipe]:
    """A recipe with the given [export] values."""

    def make(**export: object) -> Recipe:
        return Recipe(
            model=ModelTable(base="tiny"),
            data=DataTable(train="rows.jsonl"),
            export=ExportTable(**export),  # type: ignore[arg-type]
            name="tiny",
        )

    return make


@pytest.fixture(scope="session")
def a_decoder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random decoder of an architecture, its other settings given; tokenizer of `tiny_base`."""
    import torch
    import transformers

    def make(kind: str = "Llama", **settings: object) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        values = {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            **settings,
        }
        values["eos_token_id"] = json.loads((tiny_base / "config.json").read_text())["eos_token_id"]
        name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
        torch.manual_seed(0)
        config = getattr(transformers, name)(**values)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one: a mistake with them would not show
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_base / file, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What classifiers are verified on."""
    path = Path(__file__).parent.parent / "edgetune/assets/home/train.jsonl"
    return [json.loads(row)["prompt"] for row in path.read_text(encoding="utf-8").splitlines()[:40]]


@pytest.fixture(scope="session")
def encoder_tokenizer(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The tokenizer of a model type: WordPiece with BERT's special tokens, or byte-level BPE with RoBERTa's."""
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast

    def wordpiece(path: str) -> Any:
        trained = BertWordPieceTokenizer()
        trained.train_from_iterator(texts, vocab_size=400, show_progress=False)
        trained.save(path)
        return BertTokenizerFast(tokenizer_file=path)

    def bpe(path: str) -> Any:
        from tokenizers.processors import TemplateProcessing

        trained = ByteLevelBPETokenizer(lowercase=True)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
        template = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        trained._tokenizer.post_processor = template
        trained.save(path)
        names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
        return PreTrainedTokenizerFast(tokenizer_file=path, **names)

    folder = tmp_path_factory.mktemp("tokenizers")
    made = {
        "wordpiece": cache(lambda: wordpiece(str(folder / "wordpiece.json"))),
        "bpe": cache(lambda: bpe(str(folder / "bpe.json"))),
    }
    return lambda kind: made["wordpiece" if kind in ("bert", "deberta-v2", "distilbert") else "bpe"]()


@pytest.fixture(scope="session")
def a_classifier() -> Callable[[str], Any]:
    """A random torch classifier of a model type, its biases and norms random too."""
    import torch
    import transformers

    from edgetune.model.classifier import Classifier, ClassifierSpec

    def make(kind: str) -> Classifier:
        name, values = ENCODER_CONFIGS[kind]
        torch.manual_seed(0)
        encoder = transformers.AutoModel.from_config(getattr(transformers, name)(**values))
        for parameter in encoder.parameters():
            mean, std = (parameter.mean().item(), 0.1) if parameter.dim() == 1 else (0.0, 0.2)
            torch.nn.init.normal_(parameter, mean=mean, std=std)
        spec = {"pooling": "mean", "head": "cosine", "multi_label": False, "out_of_scope_label": None}
        spec |= SPECS.get(kind, {})
        labels = tuple(f"label {number}" for number in range(5))
        return Classifier(encoder, ClassifierSpec(labels=labels, scale=16.0, max_length=40, **spec)).eval()  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def exported(
    a_classifier: Callable[[str], Any],
    encoder_tokenizer: Callable[[str], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Any]:
    """What a bundle of a model type at a precision was built from, as Built; each made once, for it takes seconds."""
    from edgetune.bundle.classification import save_tokenizer, token_batches
    from edgetune.export.encoder import build_encoder
    from edgetune.quantize.classification import quantize_classifier
    from edgetune.runtime.bundle import Bundle, ClassifierFormat, write_manifest
    from edgetune.runtime.grid import BundleGrid
    from edgetune.verify.classification import Built

    @cache
    def make(kind: str, precision: str, block_size: int, is_symmetric: bool) -> Any:
        classifier, tokenizer = a_classifier(kind), encoder_tokenizer(kind)
        spec, folder = classifier.spec, tmp_path_factory.mktemp(f"{kind}-{precision}")
        bits = {"int4": 4, "int8": 8}.get(precision)
        grid = None if bits is None else BundleGrid(bits, block_size, is_symmetric, accuracy_level=4, head_bits=8)
        batches = token_batches(tokenizer, ["turn on the lamp", "off", "what is the weather"], max_length=40)
        matrices = quantize_classifier(classifier, grid, batches) if grid else {}
        build_encoder(
            classifier,
            folder,
            precision=precision,
            matrices=matrices,
            accuracy_level=grid.accuracy_level if grid else 0,
            max_length=spec.max_length,
        )
        save_tokenizer(tokenizer, folder / "tokenizer.json", max_length=spec.max_length)
        values = {"labels": spec.labels, "multi_label": spec.multi_label, "max_length": spec.max_length}
        format_ = ClassifierFormat(**values, pad_id=tokenizer.pad_token_id)
        bundle = Bundle(
            folder, kind, precision, grid, None, context_length=40, task="classification", classifier=format_
        )
        return Built(write_manifest(bundle), classifier, matrices, tokenizer)

    def give(kind: str, precision: str = "int4", block_size: int = 32, is_symmetric: bool = False) -> Any:
        return make(kind, precision, block_size, is_symmetric)  # once, however it is asked for

    return give


@pytest.fixture(scope="session")
def flipping() -> Callable[..., Any]:
    """A function that gives a bundle a threshold between its own and torch's confidence of a text, and that text.

    It is the text of which they differ most, and the threshold is in the middle: far, beside the rounding of any
    processor, from where both would say the same.
    """
    import dataclasses

    import numpy as np
    import torch

    from edgetune.runtime.bundle import Bundle
    from edgetune.runtime.classifier import Classifier
    from edgetune.runtime.probabilities import confidences, probabilities

    def give(bundle: Bundle, classifier: Any, tokenizer: Any, texts: list[str]) -> tuple[Bundle, str]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            merged = classifier(batch["input_ids"], batch["attention_mask"]).numpy()
        mine, its = (
            confidences(probabilities(logits, temperature=1.0, multi_label=False), multi_label=False)
            for logits in (Classifier(bundle).logits(texts), merged)
        )
        widest = int(np.abs(mine - its).argmax())
        threshold = float((mine[widest] + its[widest]) / 2)
        format_ = dataclasses.replace(bundle.classifier_format, threshold=threshold)
        return dataclasses.replace(bundle, classifier=format_), texts[widest]

    return give


def graph_of(folder: Path, out: Path) -> Any:
    """The bare float32 graph of a folder, as far a bundle as Logits needs one."""
    from edgetune.export.decoder import build_bare
    from edgetune.runtime.bundle import Bundle

    out.mkdir()
    build_bare(folder, out)
    config = json.loads((folder / "config.json").read_text())
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    (out / "genai_config.json").write_text(
        json.dumps({"model": {"decoder": {"head_size": size, "filename": "model.onnx"}}})
    )
    return Bundle(out, "bare", "fp32", None, None, context_length=256)
