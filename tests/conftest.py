"""Tiny real objects that many tests share, made on the spot."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as a Hugging Face folder: byte-level BPE of 512 pieces, chat format of edgetune:nano."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.assets.nano.tokenizer import END, SPECIAL_TOKENS, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny-base")
    rows = (REPOSITORY / "edgetune/assets/home/train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([" ".join(json.loads(row).values()) for row in rows], trainer)
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=tokenizer.token_to_id(END),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 prompt/completion rows in a .jsonl file."""
    path = tmp_path_factory.mktemp("tiny-rows") / "rows.jsonl"
    rows = (REPOSITORY / "edgetune/assets/home/train.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets: $EDGETUNE_DATA, or ../shared/data beside the repository."""
    path = Path(os.environ.get("EDGETUNE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        reason = f"{path}: no such folder; set EDGETUNE_DATA to the public data sets"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` as an fp32 bundle, straight from onnxruntime-genai's builder."""
    from edgetune.runtime.bundle import Bundle, ChatFormat, write_manifest

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    folder = tmp_path_factory.mktemp("tiny-bundle")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        arguments = ("", str(tiny_base), str(folder), "fp32", "cpu", str(tmp_path_factory.mktemp("cache")))
        create_model(*arguments, **parse_extra_options(*arguments, []))
    config = json.loads((tiny_base / "tokenizer_config.json").read_text(encoding="utf-8"))
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    chat = ChatFormat(
        template=config["chat_template"],
        bos_token=config["bos_token"],
        eos_token=config["eos_token"],
        bos_id=genai["bos_token_id"],
        eos_ids=(genai["eos_token_id"],),
    )
    bundle = Bundle(path=folder, name="tiny", precision="fp32", grid=None, chat=chat, context_length=512)
    return write_manifest(bundle).path
