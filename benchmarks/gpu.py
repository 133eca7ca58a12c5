"""What EdgeTune does on an NVIDIA GPU, measured in one call of under ten minutes: python -m benchmarks.gpu --out FILE

Correctness (losses and 4-bit layers against the CPU's), the planner's error, peak memory and tokens a second on
randomly initialised models of common shapes, recipes fitted to cards of 4 to 24 GiB and run under these limits, a real
recovery from running out of memory, and transformers.Trainer + PEFT + bitsandbytes, and Unsloth where it is installed,
with the same settings, in turn.
The JSON is written after every measurement, so that a call that ends early has measured something.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.measure import step_seconds
from edgetune.data.pack import Batch
from edgetune.lora.adapter import attach
from edgetune.model.base import empty_model, load_base
from edgetune.model.device import autocast
from edgetune.model.embedding import end_modules, with_quantized_ends
from edgetune.model.fit import fit
from edgetune.model.memory import FRAGMENTATION, estimate, limit_gpu_memory, peak_memory_bytes, reset_peak
from edgetune.model.nf4 import quantized_linears
from edgetune.recipe import BudgetTable, DataTable, LoraTable, ModelTable, Recipe, TrainTable
from edgetune.run_dir import RunDir
from edgetune.train.fused import frozen_weight, fuse
from edgetune.train.liger import liger_kernels
from edgetune.train.loop import train
from edgetune.train.loss import loss_sum, use_segments
from edgetune.train.offload import offload_checkpoints
from edgetune.train.optimizer import make_optimizer

MIB = 1024**2
STEPS = 8
"""Of a measurement of speed; the first two are not timed."""
FEW_STEPS = 4
"""Of a measurement of memory."""
SHAPES: dict[str, dict[str, Any]] = {
    "toy": {"kind": "llama", "widths": (64, 128, 2, 4, 2, 16), "vocabulary": 512},
    "SmolLM2-135M": {"kind": "llama", "widths": (576, 1536, 30, 9, 3, 64), "vocabulary": 49152},
    "SmolLM2-360M": {"kind": "llama", "widths": (960, 2560, 32, 15, 5, 64), "vocabulary": 49152},
    "SmolLM2-1.7B": {"kind": "llama", "widths": (2048, 8192, 24, 32, 32, 64), "vocabulary": 49152},
    "Qwen3-0.6B": {"kind": "qwen3", "widths": (1024, 3072, 28, 16, 8, 128), "vocabulary": 151936},
    "Llama-3.2-1B": {"kind": "llama", "widths": (2048, 8192, 16, 32, 8, 64), "vocabulary": 128256},
    "Llama-3.2-3B": {"kind": "llama", "widths": (3072, 8192, 28, 24, 8, 128), "vocabulary": 128256},
    "Llama-3.1-8B": {"kind": "llama", "widths": (4096, 14336, 32, 32, 8, 128), "vocabulary": 128256, "tied": False},
}
"""Hidden size, width of the MLP, layers, heads, key-value heads, width of a head; embeddings tied but where said."""
SETTINGS = (
    *("batch", "tokens", "rank", "quantization", "embedding_quantization", "optimizer", "fused_loss"),
    *("gradient_checkpointing", "offload_activations"),
)
"""Of a recipe of a measurement, as recipe_for takes them."""
EMBEDDINGS: tuple[dict[str, Any], ...] = ({}, {"embedding_quantization": "int8"}, {"embedding_quantization": "nf4"})
"""Ways to hold the embedding and head of the 8 B base."""
CARDS = {4: "Llama-3.2-1B", 6: "Llama-3.2-3B", 8: "Llama-3.2-3B", 12: "Llama-3.1-8B", 24: "Llama-3.1-8B"}
"""A base for each size of card in GiB."""


def recipe_for(base: Path, *, batch: int, tokens: int, rank: int = 16, **train_keys: Any) -> Recipe:
    """A recipe of a measurement; `gpu_memory` and how the base is quantised may be among the keys."""
    held = {key: train_keys.pop(key) for key in ("quantization", "embedding_quantization") if key in train_keys}
    model = ModelTable(str(base), compute_dtype="bfloat16", **held)
    budget = BudgetTable(gpu_memory=train_keys.pop("gpu_memory", None))
    data = DataTable("x", max_seq_len=tokens, loss_on="all")
    table = TrainTable(batch_size=batch, gradient_accumulation_steps=1, **train_keys)
    return Recipe(model, data, LoraTable(r=rank), table, budget=budget)


def grid() -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and settings of the planner's measurements, the cheapest first."""
    plain = {"batch": 4, "tokens": 512}
    for shape in ("SmolLM2-135M", "Qwen3-0.6B", "Llama-3.2-1B"):
        yield shape, plain
        yield shape, plain | {"gradient_checkpointing": True}
        yield shape, plain | {"fused_loss": False}
        yield shape, plain | {"quantization": "none"}
        yield shape, {"batch": 1, "tokens": 2048, "gradient_checkpointing": True}
        yield shape, {"batch": 8, "tokens": 128, "rank": 64}
        yield shape, {"batch": 2, "tokens": 1024, "optimizer": "adamw_8bit"}
        yield shape, {"batch": 2, "tokens": 2048, "gradient_checkpointing": True, "offload_activations": True}
    for shape in ("SmolLM2-360M", "SmolLM2-1.7B"):
        yield shape, {"batch": 2, "tokens": 1024}
        yield shape, {"batch": 8, "tokens": 1024, "gradient_checkpointing": True}


def write_config(shape: str, folder: Path) -> Path:
    """A folder with the config.json of a shape; no weights."""
    from transformers import AutoConfig

    facts = SHAPES[shape]
    hidden, wide, layers, heads, kv_heads, width = facts["widths"]
    config = AutoConfig.for_model(
        facts["kind"],
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        vocab_size=facts["vocabulary"],
        tie_word_embeddings=facts.get("tied", True),
        max_position_embeddings=8192,
    )
    config.save_pretrained(folder / shape)
    return folder / shape


def make_base(folder: Path, recipe: Recipe, device: torch.device) -> Any:
    """A model with random weights on the device, frozen, linears and embeddings quantised where the recipe says so.

    Made a tensor at a time, as `load_base` does, for in 16 bits the base may not fit under the limit of a small card.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoConfig

    config, how = AutoConfig.from_pretrained(folder), recipe.model.embedding_quantization
    kind = type(empty_model(folder))
    if how != "none":
        kind = with_quantized_ends(kind, how, torch.bfloat16)
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.bfloat16)
    if recipe.model.quantization == "nf4":
        for name, linear in quantized_linears(model).items():
            layer = Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta"
            )
            weight = _random(linear.weight, device)
            layer.weight = Params4bit(
                weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
            ).to(device)  # quantises it
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, torch.nn.Parameter(_random(parameter, device)))
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if how != "none":
        for vectors in {end.vectors for end in end_modules(model).values()}:
            vectors.to_empty(device=device)
            vectors.put(0, 0.02 * torch.randn(vectors.shape))
    else:
        model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def _random(like: Tensor, device: torch.device) -> Tensor:
    """Weights in bfloat16: of a norm ones, else small random ones."""
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=torch.bfloat16, device=device)
    return torch.empty(like.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)


def make_batch(recipe: Recipe, vocabulary: int) -> Batch:
    """Random tokens, one sample a row."""
    rows, length = recipe.train.batch_size, recipe.data.max_seq_len
    ids = torch.randint(10, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids.clone(), torch.arange(length).repeat(rows, 1), torch.ones_like(ids))


def edgetune_steps(folder: Path, recipe: Recipe, device: torch.device, steps: int = STEPS) -> dict[str, Any]:
    """Peak, tokens a second and losses of a few steps as the loop makes them."""
    torch.manual_seed(0)
    model = attach(
        make_base(folder, recipe, device), recipe.lora, gradient_checkpointing=recipe.train.gradient_checkpointing
    )
    model.train()
    fuse(model)
    use_segments(model)
    if recipe.train.offload_activations and device.type == "cuda":
        offload_checkpoints(model)
    optimizer = make_optimizer(model, recipe.train, 1e-4, head_share=1.0)
    batch = make_batch(recipe, model.config.vocab_size).to(device)
    collect()
    reset_peak()
    losses, times = [], []
    with liger_kernels(model, recipe.train.use_liger_kernel):
        for _ in range(steps):
            start_s = time.perf_counter()
            with autocast(model):
                loss, count = loss_sum(model, batch, is_fused=recipe.train.fused_loss)
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()) / count)
            times.append(time.perf_counter() - start_s)
    return {"tokens_per_s": batch.read / statistics.median(times[2:]), "losses": losses, **peaks()}


def liger_steps(folder: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """EdgeTune's steps with Liger's kernels."""
    table = dataclasses.replace(recipe.train, use_liger_kernel=True)
    return edgetune_steps(folder, dataclasses.replace(recipe, train=table), device)


def trainer_steps(folder: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The same by transformers.Trainer, PEFT and bitsandbytes, as their manuals show it."""
    from peft import prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    base = make_base(folder, recipe, device)
    base.is_loaded_in_4bit = recipe.model.quantization == "nf4"
    checkpointing = recipe.train.gradient_checkpointing
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    base.is_quantized = False  # what Trainer refuses to train without an adapter; there is one
    model = attach(base, recipe.lora, gradient_checkpointing=checkpointing)
    ids = make_batch(recipe, model.config.vocab_size).input_ids
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids] * STEPS
    with tempfile.TemporaryDirectory() as work:
        arguments = TrainingArguments(
            output_dir=work,
            per_device_train_batch_size=recipe.train.batch_size,
            max_steps=STEPS,
            learning_rate=1e-4,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            gradient_checkpointing=checkpointing,
            optim="adamw_torch" if recipe.train.optimizer == "adamw" else "adamw_bnb_8bit",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        collect()
        reset_peak()
        seconds = step_seconds(trainer)
    return {"tokens_per_s": ids.numel() / statistics.median(seconds[2:]), **peaks()}


def collect() -> None:
    """Free what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peaks() -> dict[str, Any]:
    """Peak of tensors and of what the allocator held, in MiB; on a CPU that of the process."""
    if not torch.cuda.is_available():
        return {"peak_mib": peak_memory_bytes() / MIB, "reserved_mib": None}
    torch.cuda.synchronize()
    return {
        "peak_mib": torch.cuda.max_memory_allocated() / MIB,
        "reserved_mib": torch.cuda.max_memory_reserved() / MIB,
    }


def predicted_mib(recipe: Recipe) -> float:
    """The planner's peak without CUDA's own memory, which torch does not count."""
    planned = estimate(recipe, on="cuda")
    return (planned.peak_bytes - planned.parts["CUDA context"]) / MIB


def predicted_again(report: dict[str, Any]) -> dict[str, Any]:
    """The report with `planned_mib`, what the planner says now of each measurement that it was asked about."""
    with tempfile.TemporaryDirectory() as folder:
        for row in [*report["headlines"], *report["planner"]]:
            settings = {key: row[key] for key in row if key in SETTINGS}
            row["planned_mib"] = predicted_mib(recipe_for(write_config(row["shape"], Path(folder)), **settings))
    report["planned"] = summary([*report["headlines"], *report["planner"]])
    return report


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How near the planner came: the share of rows within 10 %, and the ratios of planned to measured."""
    ratios = [row["planned_mib"] / row["peak_mib"] for row in rows]
    within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    return {"rows": len(ratios), "within_10_percent": within, "least": min(ratios), "most": max(ratios)}


@torch.no_grad()
def layer_error(device: torch.device) -> dict[str, float]:
    """Weights of edgetune:nano's 4-bit layers on the device against those on the CPU."""
    sides = [
        load_base(ModelTable("edgetune:nano", compute_dtype="float32"), device=where)
        for where in (torch.device("cpu"), device)
    ]
    names = [name for name, module in sides[0].named_modules() if type(module).__name__ == "Linear4bit"]
    errors = [
        float(
            (
                frozen_weight(sides[0].get_submodule(n), torch.float32)
                - frozen_weight(sides[1].get_submodule(n), torch.float32).cpu()
            )
            .abs()
            .max()
        )
        for n in names
    ]
    return {"layers": len(errors), "largest_difference": max(errors)}


def loss_error(device: torch.device) -> dict[str, Any]:
    """Losses of a few float32 steps of edgetune:nano on the device against those on the CPU."""
    runs = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = attach(
            load_base(ModelTable("edgetune:nano", compute_dtype="float32"), device=where), LoraTable(r=8)
        ).train()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        fuse(model)
        use_segments(model)
        optimizer = make_optimizer(model, TrainTable(), 1e-3, head_share=1.0)
        recipe = recipe_for(Path("x"), batch=4, tokens=128)
        batch, losses = make_batch(recipe, 4096).to(where), []
        for _ in range(6):
            loss, count = loss_sum(model, batch)
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()) / count)
        runs.append(losses)
    return {"cpu": runs[0], "device": runs[1], "largest": max(abs(a - b) for a, b in zip(*runs, strict=True))}


def attention_error(device: torch.device) -> dict[str, Any]:
    """Attention inside packed samples in bfloat16, its output and gradients, against float64 sample by sample: the
    largest difference as a share of the largest value. Where FlashAttention is, it is what is measured.
    """
    from edgetune.train.segments import can_flash, find_segments, round_up, segment_attention

    lengths = torch.tensor([300, 7, 129, 64, 512, 1])
    size, found = round_up(int(lengths.sum())), []
    for window in (None, 50):
        generator = torch.Generator().manual_seed(0)
        sides = [torch.randn(1, heads, size, 64, generator=generator, dtype=torch.float64) for heads in (8, 2, 2)]
        towards = torch.randn(int(lengths.sum()), 8, 64, generator=generator, dtype=torch.float64)
        outcomes = []
        for where, dtype in ((torch.device("cpu"), torch.float64), (device, torch.bfloat16)):
            q, k, v = (side.detach().to(where, dtype, copy=True).requires_grad_() for side in sides)
            if dtype == torch.float64:
                attended = torch.cat([_plain_attention(*part, window) for part in _samples((q, k, v), lengths)])
            else:
                segments = find_segments(lengths).to(where)
                attended = segment_attention(None, q, k, v, None, segments=segments, sliding_window=window)[0][0]
                attended = attended[: len(towards)]
            (attended * towards.to(where, dtype)).sum().backward()
            outcomes.append([attended.detach(), *(side.grad for side in (q, k, v))])
        pairs = [(a, b.cpu().double()) for a, b in zip(*outcomes, strict=True)]
        found.append(max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs))
    return {"is_flash": can_flash(device, torch.bfloat16, 64), "causal": found[0], "windowed": found[1]}


def _samples(sides: tuple[Tensor, ...], lengths: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values (H, length, D) of each sample."""
    for end, length in zip(lengths.cumsum(0).tolist(), lengths.tolist(), strict=True):
        yield tuple(side[0, :, end - length : end] for side in sides)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention as its formula says: (H, L, D), (K, L, D) -> (L, H, D)."""
    k, v = (side.repeat_interleave(len(q) // len(side), 0) for side in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    far = torch.ones_like(scores[0], dtype=torch.bool)
    hidden = far.triu(1) if window is None else far.triu(1) | far.tril(-window)
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


def unsloth_steps(folder: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The same by Unsloth, in a process of its own, for it changes transformers and PEFT as it is imported."""
    model = make_base(folder, recipe_for(folder, batch=1, tokens=1, quantization="none"), device)
    model.save_pretrained(folder)
    del model
    collect()
    table = recipe.train
    asked = {"folder": str(folder), "batch": table.batch_size, "tokens": recipe.data.max_seq_len, "steps": STEPS}
    asked |= {"rank": recipe.lora.r, "alpha": recipe.lora.alpha, "checkpointing": table.gradient_checkpointing}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.unsloth_steps", json.dumps(asked)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def recovery(memory: str, batch: int) -> dict[str, Any]:
    """A training of edgetune:home whose micro-batches are too large for the memory it may use."""
    with tempfile.TemporaryDirectory() as work:
        recipe = Recipe(
            ModelTable("edgetune:nano"),
            DataTable("edgetune:home", max_seq_len=512),
            train=TrainTable(batch_size=batch, gradient_accumulation_steps=1, max_steps=3, learning_rate=5e-4),
            budget=BudgetTable(gpu_memory=memory),
        )
        told: list[str] = []
        result = train(
            recipe, RunDir(Path(work) / "r"), progress=lambda event: told.append(str(event.get("message", "")))
        )
    facts = dataclasses.asdict(result)
    return {
        "asked": {"gpu_memory": memory, "batch_size": batch},
        **{key: facts[key] for key in ("batch_size", "steps", "train_loss", "peak_bytes", "tokens_per_s")},
        "told": [line for line in told if "out of memory" in line],
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The JSON to write.")
@click.option("--seconds", type=float, default=540.0, help="When to begin no more measurements (540).")
@click.option("--predict", is_flag=True, help="Measure nothing; predict what is in FILE with the planner as it is now.")
@click.option("--only", multiple=True, help="Measure this section of FILE anew, on the same hardware; may be repeated.")
@click.option("--toy", is_flag=True, help="Tiny shapes on whatever device there is: a test of this script.")
def main(out: Path, seconds: float, predict: bool, only: tuple[str, ...], toy: bool) -> None:
    """Measure on this machine's GPU and write JSON."""
    if predict:
        report = predicted_again(json.loads(out.read_text("utf-8")))
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return
    if not torch.cuda.is_available() and not toy:
        raise click.ClickException("no NVIDIA GPU is here; --toy tests this script without one")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report: dict[str, Any] = {"hardware": _hardware(device), "steps": STEPS, "few_steps": FEW_STEPS, "errors": []}
    if only:
        report = _without(json.loads(out.read_text("utf-8")), only, report["hardware"])
    start_s = time.perf_counter()

    def measure(section: str, facts: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
        """Run one measurement unless time is up; a failure is recorded as what it is."""
        if only and section not in only:
            return
        if time.perf_counter() - start_s > seconds:
            report["errors"].append({"section": section, **facts, "error": "no time was left"})
            return
        begun_s = time.perf_counter()
        try:
            report.setdefault(section, []).append({**facts, **work(), "took_s": time.perf_counter() - begun_s})
        except Exception as error:  # one shape that fails must not lose the others
            report["errors"].append({"section": section, **facts, "error": f"{type(error).__name__}: {error}"[:500]})
        finally:
            limit_gpu_memory(None)
            collect()
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as temporary:
        folders = {shape: write_config(shape, Path(temporary)) for shape in SHAPES}
        measure("layers", {}, lambda: layer_error(device))
        measure("losses", {}, lambda: loss_error(device))
        measure("attention", {}, lambda: attention_error(device))
        for shape, settings in _headlines(toy):
            recipe = recipe_for(folders[shape], **settings)
            measure(
                "headlines",
                {"shape": shape, **settings, "predicted_mib": predicted_mib(recipe)},
                lambda r=recipe, s=shape: edgetune_steps(folders[s], r, device, FEW_STEPS),
            )
        trainers: dict[str, Callable[..., dict[str, Any]]] = {"EdgeTune": edgetune_steps, "Trainer": trainer_steps}
        if find_spec("liger_kernel") and not toy:
            trainers["EdgeTune + Liger"] = liger_steps
        if find_spec("unsloth") and not toy:
            trainers["Unsloth"] = unsloth_steps

        def measure_trainers(shapes: list[tuple[str, dict[str, Any]]]) -> None:
            for shape, settings in shapes:
                recipe = recipe_for(folders[shape], **settings)
                for name, steps in trainers.items():
                    measure(
                        "trainers",
                        {"shape": shape, **settings, "trainer": name},
                        lambda r=recipe, s=shape, f=steps: f(folders[s], r, device),
                    )

        measure_trainers(_against(toy)[:2])
        for card, shape in _cards(toy):
            measure(
                "cards", {"card_gib": card, "shape": shape}, lambda c=card, s=shape: _on_card(folders[s], c, device)
            )
        measure("recovery", {}, lambda: recovery("3 GiB", 4 if toy else 128))
        for shape, settings in _planner_grid(toy):
            recipe = recipe_for(folders[shape], **settings)
            measure(
                "planner",
                {"shape": shape, **settings, "predicted_mib": predicted_mib(recipe)},
                lambda r=recipe, s=shape: edgetune_steps(folders[s], r, device, FEW_STEPS),
            )
        measure_trainers(_against(toy)[2:])
    if report.get("planner"):
        out.write_text(json.dumps(predicted_again(report), indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: {sum(len(v) for v in report.values() if isinstance(v, list))} measurements")


def _without(report: dict[str, Any], sections: tuple[str, ...], hardware: dict[str, str]) -> dict[str, Any]:
    """A report without these sections, so that they can be measured anew beside the others. Raises ClickException."""
    if report["hardware"] != hardware:
        raise click.ClickException(f"the file was measured on {report['hardware']}, this is {hardware}")
    if missing := set(sections) - report.keys():
        raise click.ClickException(f"the file has no section {', '.join(sorted(missing))}")
    kept = {key: value for key, value in report.items() if key not in sections}
    return {**kept, "errors": [error for error in report["errors"] if error["section"] not in sections]}


def _headlines(toy: bool) -> list[tuple[str, dict[str, Any]]]:
    """The claims: torchtune's figure for 3B at 2 x 4,096 tokens, and 8B within 6 GiB."""
    small = {"gradient_checkpointing": True, "offload_activations": True, "optimizer": "adamw_8bit"}
    if toy:
        toys = {"batch": 2, "tokens": 64, **small, "optimizer": "adamw"}
        return [("toy", toys), ("toy", {**toys, "embedding_quantization": "int8"})]
    return [
        ("Llama-3.2-3B", {"batch": 2, "tokens": 4096, **small}),
        *(("Llama-3.1-8B", {"batch": 1, "tokens": 1024, **small, **held}) for held in EMBEDDINGS),
    ]


def _against(toy: bool) -> list[tuple[str, dict[str, Any]]]:
    if toy:
        return [("toy", {"batch": 2, "tokens": 64})]
    return [
        ("SmolLM2-135M", {"batch": 4, "tokens": 1024}),
        ("Llama-3.2-1B", {"batch": 2, "tokens": 2048, "gradient_checkpointing": True}),
        ("Llama-3.2-1B", {"batch": 2, "tokens": 2048}),
        ("SmolLM2-1.7B", {"batch": 4, "tokens": 1024, "gradient_checkpointing": True}),
    ]


def _cards(toy: bool) -> list[tuple[int, str]]:
    return [(4, "toy")] if toy else list(CARDS.items())


def _planner_grid(toy: bool) -> list[tuple[str, dict[str, Any]]]:
    return (
        [("toy", {"batch": 2, "tokens": 64}), ("toy", {"batch": 2, "tokens": 64, "fused_loss": False})]
        if toy
        else list(grid())
    )


def _on_card(folder: Path, gib: int, device: torch.device) -> dict[str, Any]:
    """A recipe fitted to a card, run under its limit."""
    recipe = recipe_for(folder, batch=8, tokens=2048, gpu_memory=f"{gib} GiB")
    fitting, changes = fit(
        recipe,
        round(gib * 1024**3 * (1 - FRAGMENTATION)),
        lambda changed: estimate(changed, on="cuda").peak_bytes,
        is_gpu=True,
    )
    limit_gpu_memory(recipe.budget.gpu_memory)
    changed = {key: value for change in changes for key, value in change.values.items()}
    return {
        "changed": changed,
        "predicted_mib": predicted_mib(fitting),
        **edgetune_steps(folder, fitting, device, FEW_STEPS),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    import bitsandbytes
    import peft
    import transformers

    name = torch.cuda.get_device_name(0) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": bitsandbytes.__version__,
    }


if __name__ == "__main__":
    main()
