"""What a training needs before its first step, made from the recipe: data, adapted base, optimizer, step counts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgetune.data.prepare import longest_row, prepare
from edgetune.hashes import hash_values
from edgetune.lora import task as adapters
from edgetune.lora.adapter import attach
from edgetune.model.base import base_folder, load_base, load_tokenizer, padding_id
from edgetune.model.config import read_config
from edgetune.model.device import autocast, find_base, held_dtype
from edgetune.model.memory import limit_gpu_memory
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.train import processes
from edgetune.train.auto import settled
from edgetune.train.eval_share import sampled_places
from edgetune.train.fit import Training
from edgetune.train.fused import fuse
from edgetune.train.liger import check_liger
from edgetune.train.offload import offload_checkpoints
from edgetune.train.optimizer import make_optimizer
from edgetune.train.schedule import auto_learning_rate, optimizer_steps, scheduled_rate
from edgetune.train.task import TASKS, Task
from edgetune.train.trackers import check_trackers

EVALUATIONS = 10
"""How many evaluations "auto" spreads over a run."""


@dataclass(frozen=True)
class Parts:
    """A training that is ready to run. `recipe` is resolved: what was "auto" is a number."""

    recipe: Recipe
    accelerator: Any
    model: Any
    trained: list[torch.nn.Parameter]
    optimizer: Any
    scaler: Any
    """Gradient scaler of float16, else None."""
    task: Task
    inputs: str
    """Hash of recipe, base and tokenised data: a checkpoint of other inputs is refused."""
    steps: int
    learning_rate: float
    """Before what the schedule makes of it."""
    eval_steps: int
    eval_sample: Any
    """The eval rows that evaluations are on; None where they are on all."""
    checkpoint_steps: int
    dtype: str
    pause_step: int | None = None
    """After which the training is left as it is, to be gone on with."""

    @property
    def training(self) -> Training:
        """What the loop of steps needs of it."""
        table = self.recipe.train
        return Training(
            model=self.model,
            trained=self.trained,
            optimizer=self.optimizer,
            data=self.task,
            steps=self.steps,
            batch_size=self.recipe.batch_size,
            accumulation=table.gradient_accumulation_steps,
            learning_rate=partial(scheduled_rate, table, self.learning_rate, steps=self.steps),
            max_grad_norm=table.max_grad_norm,
            seed=table.seed,
            autocast=partial(autocast, self.model),
            backward=self.accelerator.backward,
            clip=self.accelerator.clip_grad_norm_,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return processes.is_main()


def set_up(
    recipe: Recipe,
    run_dir: RunDir,
    inputs: str,
    notify: Progress,
    *,
    base: Any = None,
    is_compared: bool = False,
) -> Parts:
    """Parts of the recipe's training; the same recipe and seed give the same parts. `inputs` is the hash of its files.

    `base`: the recipe's base, where it is loaded already. `is_compared`: with other trainings, so that each evaluation
    is on all eval rows. Raises what data, model and lora raise.
    """
    check_trackers(recipe.train.trackers)
    path = base_folder(recipe.model)
    check_liger(recipe.train.use_liger_kernel, read_config(path)["model_type"])
    adapters.TASKS[recipe.model.task].check_base(path, recipe)
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.model.trust_remote_code)
    accelerator = _accelerator(recipe, run_dir)
    limit_gpu_memory(recipe.budget.gpu_memory)
    task = _make_task(recipe, tokenizer, path, run_dir)
    recipe = task.recipe
    rows, model = task.prepared, _adapted_base(recipe, accelerator.device, task, base)
    learning_rate = recipe.train.learning_rate
    if learning_rate == "auto":
        learning_rate = auto_learning_rate(find_base(model).config)
    optimizer = make_optimizer(model, recipe.train, learning_rate, head_share=task.head_share(learning_rate))
    optimizer = accelerator.prepare(optimizer)
    counts = _counts(recipe, len(task.epoch(0)))
    sample = None if is_compared else _eval_sample(recipe, task, counts)
    for message in _messages(task, counts["steps"], learning_rate, sample):
        notify({"stage": "train", "message": message})
    inputs = hash_values(inputs, rows.train.fingerprint, rows.eval.fingerprint)
    dtype = str(held_dtype(model)).removeprefix("torch.")
    processes.same_everywhere(inputs, what="rows are tokenised otherwise", cure="give every machine the same versions")
    processes.same_everywhere(dtype, what="computes in another type", cure="set model.compute_dtype")
    return Parts(
        recipe=_resolve(recipe, learning_rate, counts),
        accelerator=accelerator,
        model=model,
        trained=[parameter for parameter in model.parameters() if parameter.requires_grad],
        optimizer=optimizer,
        scaler=accelerator.scaler,
        task=task,
        inputs=inputs,
        learning_rate=learning_rate,
        dtype=dtype,
        eval_sample=sample,
        **counts,
    )


def count_steps(recipe: Recipe, run_dir: RunDir) -> tuple[Recipe, int, int]:
    """The recipe with its batch size decided, its optimizer steps, and those between evaluations; no base is loaded."""
    path = base_folder(recipe.model)
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.model.trust_remote_code)
    task = _make_task(recipe, tokenizer, path, run_dir)
    counts = _counts(task.recipe, len(task.epoch(0)))
    return task.recipe, counts["steps"], counts["eval_steps"]


def _resolve(recipe: Recipe, learning_rate: float, counts: Mapping[str, int]) -> Recipe:
    """The recipe with what "auto" became."""
    table = dataclasses.replace(
        recipe.train,
        learning_rate=learning_rate,
        eval_steps=counts["eval_steps"],
        checkpoint_steps=counts["checkpoint_steps"],
    )
    return dataclasses.replace(recipe, train=table)


def _accelerator(recipe: Recipe, run_dir: RunDir) -> Any:
    """Accelerate's view of the processes and devices; precision is the loop's own affair but for float16's scaler."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    # The state is global to the process; another recipe may have left another precision in it.
    AcceleratorState._reset_state()
    is_half = recipe.model.compute_dtype == "float16" and torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="fp16" if is_half else "no",
        log_with=list(recipe.train.trackers) or None,
        project_dir=str(run_dir.path),
    )
    set_seed(recipe.train.seed)
    if recipe.train.trackers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the trackers' own dependencies
            config = {"recipe": recipe.name, "seed": recipe.train.seed, "base": recipe.model.base}
            accelerator.init_trackers("edgetune", config=config)
    return accelerator


def _make_task(recipe: Recipe, tokenizer: Any, base: Path, run_dir: RunDir) -> Task:
    """The recipe's rows, prepared, with what is learned from them; "auto" in the recipe is decided by them."""
    longest = longest_row(recipe, base, tokenizer)
    rows = processes.in_turn(lambda: prepare(recipe, tokenizer, max_length=longest, cache=run_dir.cache))
    recipe = processes.main_does(lambda: settled(recipe, rows, run_dir))
    return TASKS[recipe.model.task](recipe, rows, padding_id(tokenizer))


def _adapted_base(recipe: Recipe, device: torch.device, task: Task, base: Any) -> Any:
    """The base with its adapter and what its task adds, in training mode, with the fused step where it fits."""
    base = load_base(recipe.model, device=device) if base is None else base
    adapters.TASKS[recipe.model.task].drop_unused(base, recipe)
    torch.manual_seed(recipe.train.seed)
    will_drop = recipe.train.on_overfitting == "dropout" or recipe.train.changes is not None
    model = attach(base, recipe.lora, gradient_checkpointing=recipe.gradient_checkpointing, will_drop=will_drop)
    model.train()
    fuse(model)
    if recipe.train.offload_activations and device.type == "cuda":
        offload_checkpoints(model)
    return task.complete(model)


def _counts(recipe: Recipe, epoch_rows: int) -> dict[str, int]:
    """Optimizer steps of the run, and how often it evaluates and saves."""
    table = recipe.train
    _, steps = optimizer_steps(recipe, epoch_rows)
    eval_steps = max(1, round(steps / EVALUATIONS)) if table.eval_steps == "auto" else table.eval_steps
    checkpoint_steps = eval_steps if table.checkpoint_steps == "auto" else table.checkpoint_steps
    return {
        "steps": steps,
        "eval_steps": eval_steps,
        "checkpoint_steps": checkpoint_steps,
    }


def _eval_sample(recipe: Recipe, task: Task, counts: Mapping[str, int]) -> Any:
    """The eval rows of the evaluations, where eval_steps = "auto" and all rows would take too long."""
    rows, epoch_rows = task.prepared, len(task.epoch(0))
    evaluations = counts["steps"] // counts["eval_steps"]
    if recipe.train.eval_steps != "auto" or not len(rows.eval) or evaluations < 2:
        return None
    epochs = counts["steps"] * recipe.batch_size * recipe.train.gradient_accumulation_steps / epoch_rows
    trained_tokens = epochs * int(rows.train.lengths.sum())
    places = sampled_places(rows.eval.lengths, trained_tokens=trained_tokens, evaluations=evaluations)
    return None if places is None else rows.eval.at(places)


def _messages(task: Task, steps: int, learning_rate: float, sample: Any) -> list[str]:
    """What the user is told before the first step: what was read, what was left out, what "auto" became."""
    report = task.prepared.report
    found = [report.summary, *report.notes, f"{steps:,} steps, learning rate {learning_rate:.2e}"]
    if sample is not None:
        count = len(task.prepared.eval)
        found.append(
            f"evaluations on {len(sample):,} of the {count:,} eval rows, and on all where the last step is the best"
        )
    return found
