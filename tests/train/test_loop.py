"""The loop: gradients weighted by tokens, what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from edgetune.data.prepare import prepare
from edgetune.errors import HardwareError, MissingExtraError, OutOfMemoryError, RunError
from edgetune.hashes import hash_tree
from edgetune.lora.adapter import attach
from edgetune.lora.merge import merge
from edgetune.model.base import load_base, load_merged, load_tokenizer, resolve_base
from edgetune.recipe import LoraTable, ModelTable, TrainTable, load_recipe
from edgetune.run_dir import RunDir
from edgetune.train import fit, generation, loop
from edgetune.train import loss as loss_module
from edgetune.train.events import read_events
from edgetune.train.fit import Position, Training
from edgetune.train.fused import fuse
from edgetune.train.loop import train
from edgetune.train.loss import evaluate_loss, use_segments
from edgetune.train.optimizer import make_optimizer


class NoOptimizer:
    """Takes no step and keeps the gradients."""

    param_groups: tuple = ()

    def step(self):
        pass

    def zero_grad(self, set_to_none):
        pass


def training_for(base, tokens):
    torch.manual_seed(0)
    model = attach(load_base(ModelTable(base=str(base), compute_dtype="float32")), LoraTable(r=4)).train()
    use_segments(model)
    fuse(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.05)
    recipe = SimpleNamespace(train=SimpleNamespace(fused_loss=True))
    return Training(
        model=model,
        trained=trained,
        optimizer=NoOptimizer(),
        data=generation.Generation(recipe, SimpleNamespace(train=tokens), pad_id=0),
        steps=1,
        batch_size=1,
        accumulation=4,
        learning_rate=lambda _: 0.0,
        max_grad_norm=1e9,
    )


def test_four_micro_batches_of_unequal_length_have_the_gradient_of_one_batch(tiny_base):
    generator = torch.Generator().manual_seed(0)
    tokens = []
    for length, prompt in ((60, 5), (9, 7), (24, 3), (40, 39)):
        ids = torch.randint(5, 500, (length,), generator=generator).tolist()
        tokens.append(SimpleNamespace(input_ids=ids, labels=[-100] * prompt + ids[prompt:]))
    training = training_for(tiny_base, tokens)
    results = []
    for size, rows in ((1, [[0], [1], [2], [3]]), (4, [[0], [1], [2], [3]]), (1, [[0, 1, 2, 3]])):
        loss, trained, read = fit.make_step(replace(training, batch_size=size), Position(), rows, 0.0)
        results.append((loss, [parameter.grad.clone() for parameter in training.trained]))
        assert (trained, read) == (55 + 2 + 21 + 1, 60 + 9 + 24 + 40)
        for parameter in training.trained:
            parameter.grad = None
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("drawn_curves")
def test_a_run_learns_and_leaves_adapter_events_curve_result_and_resolved_recipe(make_recipe, tmp_path):
    run_dir = RunDir(tmp_path / "r")
    recipe = make_recipe("train.learning_rate=auto", "train.eval_steps=auto", "train.max_steps=12", "lora.dropout=0.0")
    seen = []
    result = train(recipe, run_dir, progress=seen.append)
    events = read_events(run_dir.events)
    losses = [event["loss"] for event in events if "loss" in event]
    evaluations = {event["step"]: event["eval_loss"] for event in events if "eval_loss" in event}
    assert [event["step"] for event in events if "loss" in event] == list(range(1, 13))
    assert all(event["memory_bytes"] > 0 for event in events if event.keys() & {"loss", "eval_loss"})
    assert result.steps == 12
    assert losses[-1] < losses[0] - 0.5
    assert result.eval_loss == min(evaluations.values()) == evaluations[result.best_step]
    assert result.learning_rate == pytest.approx(5e-4 * (2000 / 64) ** 0.781, rel=1e-2)
    resolved = load_recipe(run_dir.recipe)
    assert (resolved.train.learning_rate, resolved.train.eval_steps) == (result.learning_rate, 1)
    assert run_dir.loss_curve.read_bytes().startswith(b"\x89PNG")
    record = json.loads((run_dir.results / "train.json").read_text())
    assert record["provenance"]["seed"] == 0
    assert record["data"]["train_rows"] > 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in run_dir.adapter.iterdir()}
    assert not run_dir.checkpoints.exists()
    steps = [event for event in seen if "step" in event]
    keys = ("steps", "loss", "eval_loss", "learning_rate", "tokens_per_s", "memory_bytes", "left_s")
    assert all(set(keys) <= event.keys() for event in steps if "learning_rate" in event)
    assert steps[-1]["left_s"] == 0


@pytest.mark.parametrize("is_fused", ["true", "false"])
def test_a_run_on_quantised_embeddings_is_what_the_merged_model_computes(make_recipe, tmp_path, is_fused):
    keys = ("model.embedding_quantization=nf4", f"train.fused_loss={is_fused}", "train.gradient_checkpointing=true")
    recipe, run_dir = make_recipe(*keys), RunDir(tmp_path / "r")
    result = train(recipe, run_dir)
    losses = [event["loss"] for event in read_events(run_dir.events) if "loss" in event]
    assert losses[-1] < losses[0]
    base = resolve_base(recipe.model.base)
    losses = {}
    for merge_base in ("trained", "original"):
        merge(run_dir.adapter, base, run_dir.merged, merge_base=merge_base)
        tokenizer = load_tokenizer(run_dir.merged)
        rows = prepare(recipe, tokenizer, cache=run_dir.cache).eval
        total, count = evaluate_loss(load_merged(run_dir.merged), rows, pad_id=tokenizer.pad_token_id, max_seq_len=128)
        losses[merge_base] = total / count
    assert losses["trained"] == pytest.approx(result.eval_loss, rel=1e-4)
    assert abs(losses["original"] - result.eval_loss) > 10 * abs(losses["trained"] - result.eval_loss)


def test_the_adapter_kept_is_the_best_one_by_eval_loss(make_recipe, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    kept = []
    run_dir = RunDir(tmp_path / "r")

    def evaluate(*_, **__):
        kept.append(hash_tree(run_dir.adapter) if run_dir.adapter.exists() else None)
        return next(losses) * 10, 10

    monkeypatch.setattr(generation, "evaluate_loss", evaluate)
    result = train(make_recipe(), run_dir)
    assert (result.eval_loss, result.best_step, result.steps) == (1.0, 4, 6)
    assert hash_tree(run_dir.adapter) == kept[2] != kept[1]


def test_early_stopping_ends_a_run_after_its_patience(make_recipe, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(generation, "evaluate_loss", lambda *_, **__: (next(losses), 1))
    result = train(make_recipe("train.early_stopping_patience=1", "train.max_steps=20"), RunDir(tmp_path / "r"))
    assert (result.steps, result.best_step, result.stopped_early) == (4, 2, True)


def test_a_finished_run_is_up_to_date_and_not_trained_again(make_recipe, tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path / "r")
    first = train(make_recipe(), run_dir)
    monkeypatch.setattr(loop, "_train", None)
    seen = []
    assert train(make_recipe(), run_dir, progress=seen.append) == first
    assert seen == [{"stage": "train", "message": f"up to date: {run_dir.adapter}"}]
    with pytest.raises(RunError, match=r"train\.seed is 0 there, 1 here"):
        train(make_recipe("train.seed=1"), run_dir)


def test_a_finished_run_whose_data_changed_is_refused(make_recipe, tiny_rows, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(tiny_rows.read_bytes())
    recipe = make_recipe(f'data.train="{rows}"', "train.max_steps=1")
    train(recipe, RunDir(tmp_path / "r"))
    rows.write_bytes(b"\n".join(tiny_rows.read_bytes().splitlines()[:40]))
    with pytest.raises(RunError, match="data have changed"):
        train(recipe, RunDir(tmp_path / "r"))


def test_a_finished_run_whose_first_adapter_changed_is_refused(make_recipe, tmp_path):
    first = RunDir(tmp_path / "first")
    train(make_recipe("train.max_steps=1"), first)
    recipe = make_recipe(f'lora.init_from="{first.adapter}"', "train.max_steps=1")
    train(recipe, RunDir(tmp_path / "r"))
    train(make_recipe("train.max_steps=1", "train.seed=1"), RunDir(tmp_path / "second"))
    (tmp_path / "second/adapter/adapter_model.safetensors").replace(first.adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match="have changed"):
        train(recipe, RunDir(tmp_path / "r"))


def test_what_was_left_out_of_the_data_is_said_before_the_first_step(make_recipe, tmp_path):
    seen = []
    train(make_recipe("data.max_seq_len=40", "train.max_steps=1"), RunDir(tmp_path / "r"), progress=seen.append)
    messages = " ".join(event.get("message", "") for event in seen)
    assert "rows longer than max_seq_len left out" in messages


def test_two_runs_of_one_recipe_give_the_same_bytes_and_another_seed_others(make_recipe, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(make_recipe(f"train.seed={seed}", "train.max_steps=2"), RunDir(tmp_path / name))
    weights = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    "override",
    [
        "train.optimizer=adamw_8bit",
        "train.gradient_checkpointing=true",
        "model.compute_dtype=bfloat16",
        "model.quantization=none",
        "data.packing=false",
        "lora.use_dora=true",
        "train.schedule=constant",
    ],
)
def test_every_way_to_train_lowers_the_loss(make_recipe, tmp_path, override):
    run_dir = RunDir(tmp_path / "r")
    train(make_recipe(override), run_dir)
    losses = [event["loss"] for event in read_events(run_dir.events) if "loss" in event]
    assert losses[-1] < losses[0] - 0.2


def test_gradient_checkpointing_changes_no_byte(make_recipe, tmp_path):
    for name, value in (("a", "false"), ("b", "true")):
        recipe = make_recipe(f"train.gradient_checkpointing={value}", "train.max_steps=2", "lora.dropout=0.0")
        train(recipe, RunDir(tmp_path / name))
    first, second = ((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_a_loss_that_is_not_finite_stops_the_run_with_a_cure(make_recipe, tmp_path):
    complaint = r"the loss is (nan|inf); the adapter has diverged, also after 2 restarts .*; lower train\.learning_rate"
    with pytest.raises(RunError, match=complaint):
        train(make_recipe("train.learning_rate=1e30", "train.max_grad_norm=1e30"), RunDir(tmp_path / "r"))


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(make_recipe, tmp_path, monkeypatch):
    run_dir = RunDir(tmp_path / "r")
    write = loop.checkpoint.safetensors_bytes
    calls = []

    def fail_the_second_time(tensors):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(tensors)

    monkeypatch.setattr(loop.checkpoint, "safetensors_bytes", fail_the_second_time)
    with pytest.raises(RunError, match="step-00000004: cannot be written: No space left on device"):
        train(make_recipe(), run_dir)
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["step-00000002"]


def test_memory_that_runs_out_is_named_with_a_cure(make_recipe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(generation, "loss_sum", fail)
    with pytest.raises(OutOfMemoryError, match=r"edgetune plan RECIPE --fit .*lower data\.max_seq_len"):
        train(make_recipe(), RunDir(tmp_path / "r"))


def test_a_run_that_runs_out_of_memory_goes_on_in_smaller_pieces_with_the_same_losses(
    make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe("train.batch_size=4", "train.max_steps=6", "lora.dropout=0.0", "train.eval_steps=6")
    whole = train(recipe, RunDir(tmp_path / "whole"))
    sizes, plain = [], generation.loss_sum

    def fail_of_large_ones(model, batch, **options):
        if len(batch.input_ids) > 1 and len(sizes) >= 2:  # not before the third micro-batch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        sizes.append(len(batch.input_ids))
        return plain(model, batch, **options)

    monkeypatch.setattr(generation, "loss_sum", fail_of_large_ones)
    run_dir, told = RunDir(tmp_path / "pieces"), []
    result = train(recipe, run_dir, progress=told.append)
    assert max(sizes[:2]) > 1
    assert set(sizes[2:]) == {1}
    assert (result.batch_size, whole.batch_size) == (1, 4)
    assert (result.steps, result.trained_tokens) == (whole.steps, whole.trained_tokens)
    assert result.eval_loss == pytest.approx(whole.eval_loss, rel=1e-3)
    pairs = [
        [event["loss"] for event in read_events(RunDir(tmp_path / name).events) if "loss" in event]
        for name in ("whole", "pieces")
    ]
    assert pairs[1] == pytest.approx(pairs[0], rel=1e-3)
    dropped = [event["batch_size"] for event in read_events(run_dir.events) if "batch_size" in event]
    assert dropped == [1]
    messages = [event["message"] for event in told if "out of memory" in event.get("message", "")]
    assert messages[-1].endswith("goes on with 1 in a micro-batch, each step as large as before")
    assert json.loads((run_dir.results / "train.json").read_text())["batch_size"] == 1


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_smaller_batches_with_the_same_loss(
    make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe("train.batch_size=4", "train.max_steps=2", "train.eval_steps=1", "data.packing=false")
    whole = train(recipe, RunDir(tmp_path / "whole"))
    plain, sizes, told = loss_module.loss_sum, [], []

    def fail_of_large_ones(model, batch, **options):
        if not torch.is_grad_enabled() and len(batch.input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        sizes.append(len(batch.input_ids))
        return plain(model, batch, **options)

    monkeypatch.setattr(loss_module, "loss_sum", fail_of_large_ones)
    result = train(recipe, RunDir(tmp_path / "pieces"), progress=told.append)
    assert result.eval_loss == pytest.approx(whole.eval_loss, rel=1e-3)
    assert result.batch_size == 4  # training itself is not slowed
    assert sizes
    assert set(sizes) == {1}
    assert [event["message"] for event in told if "out of memory" in event.get("message", "")] == [
        "step 1: out of memory in the evaluation; goes on with smaller batches of it"
    ] * 2  # 4 rows, 2, 1: the second evaluation begins with 1


def test_an_evaluation_for_which_no_batch_is_small_enough_is_named(make_recipe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "evaluate_loss", fail)
    with pytest.raises(OutOfMemoryError):
        train(make_recipe("train.max_steps=1"), RunDir(tmp_path / "r"))


def test_a_failure_that_is_not_of_memory_is_not_tried_again(make_recipe, tmp_path, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(generation, "loss_sum", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train(make_recipe("train.batch_size=4"), RunDir(tmp_path / "r"))
    assert len(calls) == 1


def test_a_tracker_that_is_not_installed_is_named_before_any_work(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="wandb is not installed; pip install wandb"):
        train(make_recipe('train.trackers=["wandb"]'), RunDir(tmp_path / "r"))


def test_trackers_get_every_metric_through_accelerate(make_recipe, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("edgetune.train.setup.check_trackers", lambda _: None)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, _: names)
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, **__: None)
    monkeypatch.setattr(Accelerator, "log", lambda _, values, step: seen.append((step, set(values))))
    train(make_recipe('train.trackers=["tensorboard"]', "train.max_steps=2"), RunDir(tmp_path / "r"))
    step = {"loss", "learning_rate", "tokens_per_s", "memory_bytes"}
    assert seen == [(1, step), (2, step), (2, {"eval_loss", "train_loss", "memory_bytes"})]


@pytest.mark.skipif(torch.cuda.is_available(), reason="paged optimizers work with CUDA")
def test_a_paged_optimizer_needs_cuda():
    with pytest.raises(HardwareError, match="use adamw_8bit"):
        make_optimizer(torch.nn.Linear(2, 2), TrainTable(optimizer="paged_adamw"), 1e-3)


def test_weight_decay_spares_what_is_one_dimensional():
    optimizer = make_optimizer(torch.nn.Linear(2, 2), TrainTable(weight_decay=0.1), 1e-3)
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.1, 1: 0.0}


def test_epochs_count_whole_passes_and_the_last_step_may_be_smaller(make_recipe, tmp_path):
    run_dir = RunDir(tmp_path / "r")
    recipe = make_recipe("train.epochs=1.0", "train.gradient_accumulation_steps=4")
    recipe = replace(recipe, train=replace(recipe.train, max_steps=None))
    result = train(recipe, run_dir)
    record = json.loads((run_dir.results / "train.json").read_text())
    assert (result.tokens, result.trained_tokens) == (record["data"]["tokens"], record["data"]["trained_tokens"])
    assert math.isfinite(result.train_loss)


@pytest.mark.parametrize(("steps", "epochs"), [(30, 1.0), (3, 100.0)])
def test_max_steps_hold_whatever_epochs_say(make_recipe, tiny_rows, tmp_path, monkeypatch, steps, epochs):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(tiny_rows.read_text().splitlines(keepends=True)[:5]))
    keys = (f"train.max_steps={steps}", f"train.epochs={epochs}", "train.eval_steps=auto")
    recipe = make_recipe(f'data.train="{rows}"', f'data.eval="{rows}"', "data.packing=false", *keys)
    orders, plain = [], generation.Generation.epoch

    def epoch(self, number):
        orders.append((number, plain(self, number)))
        return orders[-1][1]

    monkeypatch.setattr(generation.Generation, "epoch", epoch)
    run_dir = RunDir(tmp_path / "r")
    assert train(recipe, run_dir).steps == steps
    events = read_events(run_dir.events)
    rates = [event["learning_rate"] for event in events if "loss" in event]
    assert (len(rates), rates[-1]) == (steps, pytest.approx(0.1 * 0.01))  # the schedule ends with the last step
    assert [event["step"] for event in events if "eval_loss" in event][-1] == steps
    passes = dict(orders)
    assert sorted(passes) == list(range(15 if steps == 30 else 2))  # 5 rows: steps of 4 and 1, as a step has four
    assert len({str(order) for order in passes.values()}) > 1
