"""The weights of edgetune:nano load as a Llama and know more than counts do; the training loop learns and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from edgetune.assets import nano
from edgetune.assets.nano import export, pretrain
from edgetune.assets.nano.corpus import Document
from edgetune.assets.nano.tasks import make_pool

FOLDER = Path(nano.__file__).parent


def test_weights_are_tied_bfloat16_of_6_million_parameters() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        shapes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "lm_head.weight" not in shapes
    assert {t.dtype for t in shapes.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in shapes.values()) == 6_163_712


def test_model_finds_running_text_likelier_than_bigram_counts_do() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    text = "<|endoftext|>Once upon a time there was a little girl who lived in a small house near the forest."
    ids = torch.tensor([AutoTokenizer.from_pretrained(FOLDER)(text).input_ids])
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < json.loads((FOLDER / "training.json").read_text())["bigram_nats_per_token"]


def test_generation_stops_at_the_end_of_a_turn_or_of_a_document() -> None:
    config = GenerationConfig.from_pretrained(FOLDER)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, [5, 0], 1)


def test_bigram_counts_beat_unigram_counts_on_ordered_data() -> None:
    ids = np.tile(np.arange(10, dtype=np.uint16), 3000)
    assert export.bigram_loss(ids, ids[:100]) < 0.2 < export.unigram_loss(ids, ids[:100])


def test_clock_warms_up_holds_and_decays_to_zero(tmp_path: Path) -> None:
    clock = pretrain.Clock(0.0, None, 600.0)
    assert clock.factor(0) == pytest.approx(1 / pretrain.WARMUP_STEPS)
    clock.check(tmp_path, 1000.0)
    assert clock.factor(10_000) == 1
    clock.elapsed_s = 1000.0
    clock.check(tmp_path, 1000.0)
    clock.elapsed_s = 1300.0
    assert clock.factor(10_000) == pytest.approx(0.5)
    clock.elapsed_s = 1700.0
    assert clock.factor(10_000) == 0


def test_a_decay_now_file_starts_the_decay_with_its_length_in_minutes(tmp_path: Path) -> None:
    clock = pretrain.Clock(50.0, None, 600.0)
    (tmp_path / "decay_now").write_text("2")
    clock.check(tmp_path, 1e9)
    clock.elapsed_s = 110.0
    assert clock.factor(10_000) == pytest.approx(0.5)


def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    model = pretrain.make_model()
    optimizers = pretrain.make_optimizers(model)
    rows = torch.randint(6, 4096, (pretrain.ROWS_PER_STEP, 17), generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(0.1, 1, 16).expand(len(rows), -1)
    pretrain.train_step(pretrain.row_losses, model, optimizers, rows, weights, 1.0)
    progress = {"step": 1, "tokens": 256} | pretrain.Clock(5.0, None, 60.0).state()
    pretrain.save_checkpoint(tmp_path, model, optimizers, progress)
    resumed = pretrain.make_model()
    resumed_optimizers = pretrain.make_optimizers(resumed)
    state = pretrain.load_checkpoint(tmp_path, resumed, resumed_optimizers)
    assert (state["step"], state["tokens"], state["elapsed_s"]) == (1, 256, 5.0)
    went_on = pretrain.train_step(pretrain.row_losses, model, optimizers, rows, weights, 1.0)
    resumed_losses = pretrain.train_step(pretrain.row_losses, resumed, resumed_optimizers, rows, weights, 1.0)
    assert torch.equal(resumed_losses, went_on)


def test_answers_are_the_tokens_after_the_assistant_role_up_to_its_end() -> None:
    rows = torch.tensor([[0, 3, 70, 5, 4, 80, 81, 5, 3, 90, 5, 4, 82]])
    inside = export.is_answer(rows)[0].tolist()
    assert [token for token, answer in zip(rows[0, 1:].tolist(), inside, strict=True) if answer] == [80, 81, 5, 82]


def test_an_epoch_reads_each_document_as_often_as_its_passes_say_and_a_step_gives_the_same_rows_again() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    documents = [Document("prose", f"The farmer gave Lucy {i} yellow apples for the road.") for i in range(700)]
    documents.append(Document("snips", "play the long song by lucy"))
    ids, starts = pretrain.pack_documents(tokenizer, documents)
    passes = np.array([1] * 700 + [3])
    read = np.concatenate([ids, ids[starts[-2] :], ids[starts[-2] :]])
    batches = pretrain.Batches(tokenizer, ids, starts, passes, make_pool(documents))
    synthetic = batches.synthetic_rows
    steps = -(-len(read) // ((batches.rows - synthetic) * (pretrain.CONTEXT + 1)))
    natural = [batches[step][0][:-synthetic].flatten() for step in range(steps)]
    assert np.array_equal(np.sort(torch.cat(natural)[: len(read)].numpy()), np.sort(read))
    assert torch.equal(batches[1][0], batches[1][0])
    assert not torch.equal(batches[1][0][-1], batches[0][0][-1])
    ahead = batches.from_step(1, 1)
    assert all(torch.equal(next(ahead)[0], batches[step][0]) for step in (1, 2, 3))


def test_only_prompts_of_synthetic_rows_weigh_less() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    documents = [Document("prose", f"The farmer gave Lucy {i} yellow apples for the road.") for i in range(700)]
    documents.append(Document("snips", "play the long song by lucy"))
    ids, starts = pretrain.pack_documents(tokenizer, documents)
    batches = pretrain.Batches(tokenizer, ids, starts, np.ones(701, dtype=int), make_pool(documents), rows=4)
    rows, weights = batches[0]
    assert bool((weights[:2] == 1).all())
    is_answer = export.is_answer(rows[2:])
    assert 0.1 < is_answer.float().mean() < 0.9
    assert torch.equal(weights[2:], torch.where(is_answer, 1.0, 0.1))
