"""The decoder: the same text as torch, streamed or not; when it stops; what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.errors import BundleError, PromptError
from edgetune.runtime.bundle import open_bundle, write_manifest
from edgetune.runtime.decoder import Decoder, Generation
from edgetune.runtime.logits import Logits

PROMPT = "turn on the lamp in the kitchen"


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Decoder:
    return Decoder(tiny_bundle)


def with_chat(tiny_bundle: Path, **chat: Any) -> Decoder:
    bundle = open_bundle(tiny_bundle)
    return Decoder(dataclasses.replace(bundle, chat=dataclasses.replace(bundle.chat, **chat)))


def test_greedy_tokens_equal_torchs(decoder: Decoder, tiny_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = decoder.token_ids(PROMPT)
    wanted = list(ids)
    with torch.no_grad():
        for _ in range(40):
            wanted.append(int(model(torch.tensor([wanted])).logits[0, -1].argmax()))
    result = decoder.generate(PROMPT, max_new_tokens=40)
    got = list(result.token_ids)
    assert got == wanted[len(ids) :][: len(got)]
    assert len(got) == 40 or wanted[len(ids) + len(got)] in decoder.bundle.chat.eos_ids
    assert result.prompt_tokens == len(ids)


def test_streamed_pieces_make_up_the_text(decoder: Decoder) -> None:
    pieces: list[str] = []
    result = decoder.generate(PROMPT, max_new_tokens=30, on_text=pieces.append)
    assert "".join(pieces) == result.text == decoder.prompter.decode(result.token_ids)
    assert list(decoder.stream(PROMPT, max_new_tokens=30)) == pieces
    assert len(pieces) > 1


def test_generation_stops_at_an_end_token_and_leaves_it_out(tiny_bundle: Path, decoder: Decoder) -> None:
    ids = decoder.generate(PROMPT, max_new_tokens=20).token_ids
    end = next(i for i in range(3, 20) if ids[i] not in ids[:i])
    result = with_chat(tiny_bundle, eos_ids=(ids[end], 5)).generate(PROMPT, max_new_tokens=20)
    assert result.token_ids == ids[:end]
    assert result.stop_reason == "end"


def test_an_answer_that_reaches_its_limit_says_so(decoder: Decoder) -> None:
    result = decoder.generate(PROMPT, max_new_tokens=1)
    assert len(result.token_ids) == 1
    assert result.stop_reason == "length"
    assert result.tokens_per_s == 0
    assert result.prefill_s > 0


def test_the_answer_ends_with_the_context(tiny_bundle: Path) -> None:
    decoder = with_chat(tiny_bundle, eos_ids=(511,))
    result = decoder.generate([7] * 505, max_new_tokens=100)
    assert len(result.token_ids) == 7
    assert result.stop_reason == "length"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(decoder: Decoder) -> None:
    first, again, other = (
        decoder.generate(PROMPT, max_new_tokens=30, temperature=1.5, seed=seed).token_ids for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_tiny_top_p_is_greedy(decoder: Decoder) -> None:
    sampled = decoder.generate(PROMPT, max_new_tokens=20, temperature=1.0, top_p=1e-6, seed=3)
    assert sampled.token_ids == decoder.generate(PROMPT, max_new_tokens=20).token_ids


def test_text_messages_and_ids_are_the_same_prompt(decoder: Decoder) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    ids = decoder.prompter.chat_ids(messages)
    answers = {decoder.generate(prompt, max_new_tokens=8).token_ids for prompt in (PROMPT, messages, ids, tuple(ids))}
    assert len(answers) == 1


def test_without_a_chat_template_text_is_continued_as_it_is(tiny_bundle: Path) -> None:
    decoder = with_chat(tiny_bundle, template=None)
    assert decoder.token_ids("turn on") == decoder.prompter.text_ids("turn on")


def test_time_spent_by_the_receiver_is_not_counted(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the receiver moves: each of its 50 s would show."""
    now, pieces = [1.0], []

    def receive(piece: str) -> None:
        pieces.append(piece)
        now[0] += 50.0

    monkeypatch.setattr("edgetune.runtime.decoder.time", SimpleNamespace(perf_counter=lambda: now[0]))
    result = decoder.generate(PROMPT, max_new_tokens=10, on_text=receive)
    assert len(pieces) > 1
    assert (result.prefill_s, result.decode_s) == (0.0, 0.0)


@pytest.mark.parametrize("spin_us", [0, 1, 1000])
def test_how_long_threads_spin_changes_no_answer(decoder: Decoder, tiny_bundle: Path, spin_us: int) -> None:
    other = Decoder(tiny_bundle, threads=2, spin_us=spin_us)
    wanted = decoder.generate(PROMPT, max_new_tokens=10).token_ids
    assert other.generate(PROMPT, max_new_tokens=10).token_ids == wanted


def test_speed_counts_the_end_token_as_a_step() -> None:
    facts: dict[str, Any] = {"text": "", "token_ids": (1, 2, 3), "prompt_tokens": 1, "prefill_s": 1.0, "decode_s": 0.5}
    assert Generation(**facts, stop_reason="length").tokens_per_s == 4.0
    assert Generation(**facts, stop_reason="end").tokens_per_s == 6.0


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "the prompt is empty"),
        (" \n ", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([7] * 512, {}, "the prompt has 512 tokens, the context of tiny holds 512, answer included; shorten it"),
        (PROMPT, {"temperature": -0.1}, "temperature is -0.1, must be 0"),
        (PROMPT, {"temperature": float("nan")}, "temperature is nan"),
        (PROMPT, {"top_p": 0.0}, "top_p is 0.0"),
        (PROMPT, {"top_p": 1.1}, "top_p is 1.1"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (PROMPT, {"seed": -1}, "seed is -1"),
        ([512], {}, "token 512 is not in the vocabulary"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_text(
    decoder: Decoder, prompt: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        decoder.stream(prompt, **settings)


def test_a_token_that_the_model_has_no_vector_for_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """A tokenizer may know more tokens; a graph on the grid would answer with whatever lies behind its rows."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["vocab_size"] = 400
    (folder / "genai_config.json").write_text(json.dumps(config))
    bundle = write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=folder, files={}))
    decoder = Decoder(bundle)
    assert decoder.token_ids([7, 399]) == [7, 399]
    word = decoder.prompter.tokenizer.id_to_token(400)
    with pytest.raises(PromptError, match=rf"holds the token {re.escape(repr(word))}, number 400, and .* 400 tokens"):
        decoder.generate([7, 400])
    with pytest.raises(PromptError, match="token 400, and the model has vectors for 400 tokens"):
        Logits(bundle).logits([7, 400])


def test_a_graph_that_does_not_load_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_bundle, tmp_path / "b")
    size = (tmp_path / "b/model.onnx").stat().st_size
    (tmp_path / "b/model.onnx").write_bytes(b"\x07" * size)
    with pytest.raises(BundleError, match="cannot be loaded") as caught:
        Decoder(tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_fit_its_settings_is_a_damaged_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    config = folder / "genai_config.json"
    values = json.loads(config.read_text())
    values["model"]["context_length"] = 2
    config.write_text(json.dumps(values))
    decoder = Decoder(write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=folder, files={})))
    with pytest.raises(BundleError, match=r"cannot be run: .*; copy or export it again"):
        decoder.generate(PROMPT, max_new_tokens=4)


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json"])
def test_a_file_of_nothing_but_brackets_is_a_damaged_bundle(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(BundleError, match=f"{name}: cannot be read: .*; copy or export it again"):
        Decoder(write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=folder, files={})))


@pytest.mark.parametrize(("data", "head_size"), [(b"", 32), (None, 0)])
def test_a_damaged_model_prints_nothing_of_its_own(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes | None, head_size: int
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    if data is not None:
        (folder / "model.onnx.data").write_bytes(data)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["head_size"] = head_size
    (folder / "genai_config.json").write_text(json.dumps(config))
    bundle = write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=folder, files={}))
    with pytest.raises(BundleError, match=r"cannot be (loaded|run): .*; copy or export it again") as caught:
        Decoder(bundle).generate(PROMPT, max_new_tokens=4)
    assert capfd.readouterr() == ("", "")
    assert len(caught.value.message) < 500


def test_tokens_are_timed_to_the_end_of_the_context_whatever_the_model_says(tiny_bundle: Path) -> None:
    decoder = Decoder(tiny_bundle)
    assert len(decoder.token_seconds([5] * 500, new_tokens=12)) == 12
    assert all(seconds > 0 for seconds in decoder.token_seconds([5], new_tokens=3))
    with pytest.raises(PromptError, match="the context holds 512"):
        decoder.token_seconds([5] * 500, new_tokens=13)
