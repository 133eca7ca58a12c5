"""A .gguf file through llama.cpp, where llama-cpp-python is installed: edgetune/model/gguf.py and what uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune.bench.bench import bench
from edgetune.bench.settings import Settings
from edgetune.cli import main
from edgetune.errors import ModelError, PromptError

PROMPT = "turn on the lamp in the kitchen"


def test_without_llama_cpp_a_gguf_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done = CliRunner().invoke(main, ["bench", str(tmp_path / "a.gguf")])
    assert (done.exit_code, done.stdout) == (3, "")
    assert "pip install 'edgetune[bench]'" in done.stderr


@pytest.fixture(scope="module")
def gguf_file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_base in float32."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from benchmarks.gguf_model import write_gguf

    return write_gguf(tiny_base, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_text_is_read_and_ended_as_by_the_model_it_was_made_from(gguf_file: Path, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    from edgetune.model.gguf_tokenizer import GgufTokenizer

    ours, theirs = GgufTokenizer(gguf_file), AutoTokenizer.from_pretrained(tiny_base)
    turns = [{"role": "user", "content": PROMPT}]
    text = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(turns, add_generation_prompt=True) == text
    assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
    assert theirs.eos_token_id in ours.end_ids
    assert ours.eos_token == theirs.eos_token
    assert ours._file.detokenize(theirs(PROMPT, add_special_tokens=False)["input_ids"]).strip() == PROMPT


def test_a_gguf_file_is_worth_what_the_model_is_that_it_was_made_from(
    gguf_file: Path, tiny_bundle: Path, tiny_rows: Path
) -> None:
    settings = Settings(1, repeats=1, passes=1, prompts=(8, 512), decode_prompt=8, decode_new=4, contexts=(64, 2048))
    overrides = [f'data.test="{tiny_rows}"', "evaluate.max_rows=6", "evaluate.max_new_tokens=8"]
    report = bench([str(tiny_bundle), str(gguf_file)], settings, overrides=overrides, progress=lambda _: None)
    bundle, gguf = report["targets"]
    assert (gguf["kind"], gguf["disk_bytes"]) == ("gguf", gguf_file.stat().st_size)
    # llama.cpp holds keys and values in float16
    assert gguf["perplexity"]["value"] == pytest.approx(bundle["perplexity"]["value"], rel=1e-3)
    assert gguf["perplexity"]["trained_tokens"] == bundle["perplexity"]["trained_tokens"]
    assert gguf["kl"]["kl"] == pytest.approx(0, abs=1e-4)
    assert gguf["score"]["value"] == bundle["score"]["value"]
    assert gguf["peak_bytes"]["2048"] == {"absent": "its context holds 512 tokens"}
    assert gguf["peak_bytes"]["64"]["cold"]["median"] > 0
    assert gguf["weights"]["body"] == 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert gguf["weights"]["bytes"] == 4 * (gguf["weights"]["body"] + 512 * 64)
    assert gguf["decode_tokens_per_s"]["median"] > 0


def test_answers_and_losses_do_not_depend_on_the_chunks_they_are_made_in(gguf_file: Path) -> None:
    from edgetune.model.gguf import CHUNK, Gguf

    file = Gguf(gguf_file, threads=1)
    ids = [(7 * n) % 500 for n in range(CHUNK + 9)]
    losses = file.token_losses(ids)
    assert losses.shape == (len(ids) - 1,)
    assert file.token_losses(ids[:20]) == pytest.approx(losses[:19], rel=1e-3)
    first = list(file.stream(ids, new_tokens=3))
    *_, last = file.logits(ids)
    assert first[0] == int(last[-1].argmax())
    assert list(file.stream([*ids, first[0]], new_tokens=2)) == first[1:]
    with pytest.raises(PromptError, match="holds 1 to 512"):
        list(file.stream(ids * 8, new_tokens=1))


def test_what_is_no_gguf_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edgetune.model.gguf import Gguf

    (tmp_path / "a.gguf").write_bytes(b"not one at all")
    with pytest.raises(ModelError, match=r"a\.gguf: cannot be loaded: \w+"):
        Gguf(tmp_path / "a.gguf")
    for name in ("absent.gguf", "a.gguf"):
        done = CliRunner().invoke(main, ["bench", str(tmp_path / name), "--repeats", "1"])
        assert (done.exit_code, done.stdout) == (2, "")
        assert name in done.stderr
        assert done.stderr.splitlines()[-1].startswith("edgetune: ")


def test_tokens_a_second_are_those_that_llama_cpp_counts_itself(tmp_path: Path) -> None:
    """Each of the same calls, whose time ours holds and a little of Python; benchmarks.agree says how little."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.gguf_model import write_gguf
    from edgetune.model.base import resolve_base
    from edgetune.model.gguf import Gguf

    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=512, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer = json.loads((resolve_base("edgetune:nano") / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    file = Gguf(write_gguf(tmp_path / "model", tmp_path / "model.gguf"), threads=1)
    ids = list(range(10, 138))
    file.token_seconds(ids, new_tokens=64)
    file._api.llama_perf_context_reset(file._context)
    ours = file.token_seconds(ids, new_tokens=64)
    theirs = file._api.llama_perf_context(file._context)
    assert (theirs.n_p_eval, theirs.n_eval) == (128, 63)
    assert sum(ours[1:]) >= 1e-3 * theirs.t_eval_ms > 0
    assert ours[0] >= 1e-3 * theirs.t_p_eval_ms > 0
