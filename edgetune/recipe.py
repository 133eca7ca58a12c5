"""Recipes: frozen dataclasses read from TOML. Load, override, check all at once, write back. First step of every flow.

A recipe holds one flat table a stage. Checking never changes a value: what cannot stand is a problem, and all problems
are reported together. "auto" is a value a user can write; the resolved recipe in the run folder records what it became.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgetune.errors import RecipeError, shown
from edgetune.metric_names import CLASSIFIER_METRICS

Method = Literal["rtn", "search", "hqq", "gptq", "awq"]
"""Of rounding weights to the grid; quantize.methods has them all."""
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
"""Those that look at training rows."""
INT2_BLOCK_SIZES = (32, 64, 128)
"""For which onnxruntime's CPU multiplies two bits as they are; else it unpacks the whole matrix for every token, 800
times slower (1.32, 1024 x 1024)."""
MOST = 2**31 - 1
"""Of any integer in a recipe that has no bound of its own."""


def _at(default: Any, *, least: float | None = None, most: float | None = None, above: float | None = None) -> Any:
    """A dataclass field with bounds: least <= value <= most, or value > above."""
    return field(default=default, metadata={"least": least, "most": most, "above": above})


def _filled(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for a name or path: any text but ""."""
    return field(default=default, metadata={"filled": True})


@dataclass(frozen=True)
class ModelTable:
    """[model]: the base that is fine-tuned and how it is held in memory."""

    base: str = _filled()
    """Local folder, hub id, or `edgetune:nano`."""
    task: Literal["generation", "classification"] = "generation"
    """A decoder that answers, or an encoder with a head that labels texts; [classify] says how."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Never implied."""
    quantization: Literal["nf4", "none"] = "nf4"
    """bitsandbytes NF4 (QLoRA, arXiv:2305.14314, section 3) or the base as it is."""
    double_quantization: bool = True
    """Quantise the NF4 scales too (QLoRA, section 3): 0.37 bit a weight less."""
    embedding_quantization: Literal["none", "int8", "nf4"] = "none"
    """A decoder's embedding and output head, which `quantization` leaves alone: in the compute type, or in 8.25 or 4.25
    bits a weight while they are frozen. For large vocabularies; a merge on the trained base keeps what was trained."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of activations and matrix products; auto: bfloat16 where the hardware has it, else float32."""


@dataclass(frozen=True)
class DataTable:
    """[data]: rows to learn from and rows to measure on."""

    train: str = _filled()
    """File (.jsonl .json .csv .tsv .parquet, also .gz), folder, hub dataset id, or `edgetune:home`."""
    eval: str | None = _filled(None)
    """Rows for the loss during training; without it `eval_fraction` of train is set apart."""
    test: str | None = _filled(None)
    """Rows for the reported scores, looked at once; without it the eval rows serve."""
    format: Literal["auto", "messages", "prompt-completion", "alpaca", "sharegpt", "text"] = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the file's, e.g. {prompt = "question", completion = "answer"}."""
    system: str | None = None
    """System message put before rows that have none."""
    swapped_copies: int = _at(0, least=0)
    """Copies of each train row whose answer in JSON copies values from its question, with values of other rows."""
    eval_fraction: float = _at(0.05, above=0.0, most=0.5)
    max_train_rows: int | None = _at(None, least=1)
    max_seq_len: int = _at(1024, least=8)
    """Length in tokens of a training sequence."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What becomes of a row longer than max_seq_len; the number of such rows is always shown."""
    loss_on: Literal["completion", "all"] = "completion"
    packing: bool = True
    """Fill sequences with several rows that cannot see each other."""


@dataclass(frozen=True)
class ClassifyTable:
    """[classify]: what model.task = "classification" adds."""

    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """One vector a text: the mean over its tokens, the first token, or the base's own pooler over that."""
    head: Literal["cosine", "linear"] = "cosine"
    """cosine: `scale` times the cosine with each label's direction, which starts at the mean of its training texts."""
    scale: float = _at(20.0, above=0.0)
    head_learning_rate: Literal["auto"] | float = _at("auto", above=0.0)
    """auto: ten times train.learning_rate."""
    multi_label: bool = False
    """A text may have any number of labels: a list, or a text with `label_separator` between them."""
    label_separator: str = _filled(",")
    label_smoothing: float = _at(0.1, least=0.0, most=0.9)
    """Share of the target that is spread over all labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a label's rows weigh rows / (labels * rows of the label), for skewed data."""
    out_of_scope_label: str | None = _filled(None)
    """The label of rows that belong to no other: the bundle answers them with "unknown". Training rows that have it
    teach the head, eval rows set the threshold; either kind may be missing."""
    false_accept_rate: float | None = _at(None, least=0.0, most=1.0)
    """Least sure answers become "unknown": at most this share of eval rows out of scope (or, where there are none, of
    wrongly answered ones) is still given a label. Without it, eval rows out of scope set the threshold with the highest
    mean of in-scope accuracy and out-of-scope recall."""
    positive_label: str | None = _filled(None)
    """The label whose F1 the metric "f1" is."""


@dataclass(frozen=True)
class LoraTable:
    """[lora]: the adapter (LoRA, arXiv:2106.09685), in PEFT's words."""

    r: int = _at(16, least=1)
    alpha: float = _at(32.0, above=0.0)
    dropout: float = _at(0.0, least=0.0, most=0.95)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (rsLoRA, arXiv:2312.03732)."""
    train_embeddings: bool = False
    """Train the embedding whole beside the adapter, and the output head (with it where they are tied): PEFT's
    modules_to_save. Costs 16 bytes a weight; wins much where the base is small or its words are not yours."""
    use_dora: bool = False
    """Learn magnitudes apart (DoRA, arXiv:2402.09353)."""
    init_from: str | None = _filled(None)
    """Adapter folder to go on from, made by EdgeTune, PEFT, TRL or Unsloth; its r, alpha and targets hold."""


@dataclass(frozen=True)
class TrainTable:
    """[train]: the loop."""

    seed: int = _at(0, least=0)
    epochs: float = _at(2.0, above=0.0)
    max_steps: int | None = _at(None, least=1)
    """Optimizer steps, whatever `epochs` says: the rows are gone through again as often as it takes."""
    batch_size: Literal["auto"] | int = _at(4, least=1)
    """Sequences in one micro-batch; auto: as many as fit the memory, a step having as many as with the default."""
    gradient_accumulation_steps: int = _at(4, least=1)
    learning_rate: Literal["auto"] | float = _at("auto", above=0.0)
    """auto: 5e-4 * (2000 / hidden_size) ** p, p = 0.781 for Llama shapes and 0.0775 for Qwen."""
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "cosine"
    """plateau: constant, until the eval loss stops falling."""
    plateau_patience: int = _at(1, least=1)
    """Evaluations without a better loss after which schedule = "plateau" cuts the learning rate."""
    plateau_factor: float = _at(0.5, above=0.0, most=0.95)
    """What such a cut multiplies the learning rate by."""
    warmup_ratio: float = _at(0.03, least=0.0, most=1.0)
    min_learning_rate_ratio: float = _at(0.1, least=0.0, most=1.0)
    """Where linear and cosine end, and below which plateau never goes, as a share of the learning rate."""
    weight_decay: float = _at(0.0, least=0.0)
    max_grad_norm: float = _at(1.0, above=0.0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    fused_loss: bool = True
    """Logits of a few positions at a time, their gradients at once; false: of all at once. A decoder's."""
    gradient_checkpointing: Literal["auto"] | bool = False
    """Keep only the layers' inputs and compute each layer again on the way back: a third slower, far less memory.
    auto: where nothing fits without it."""
    offload_activations: bool = False
    """Keep these inputs in host memory while they wait. Needs gradient_checkpointing and a GPU."""
    use_liger_kernel: bool = False
    """Liger's fused norms, rotary embeddings and MLPs. Needs a GPU and the package liger-kernel."""
    eval_steps: Literal["auto"] | int = _at("auto", least=1)
    """Optimizer steps between evaluations; auto: about ten in a run."""
    early_stopping_patience: int | None = _at(None, least=1)
    """Stop after this many evaluations without a better loss."""
    on_overfitting: Literal["warn", "dropout", "weight_decay"] = "warn"
    """What is done where the eval loss rises while the training loss falls: a line, or this is raised as well."""
    divergence_restarts: int = _at(2, least=0)
    """How often a training whose loss becomes no number, or stays far above its best, goes on from its last sound
    checkpoint at 0.3 of the learning rate; then it is an error."""
    checkpoint_steps: Literal["auto"] | int = _at("auto", least=1)
    """Optimizer steps between checkpoints; auto: at every evaluation."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclass(frozen=True)
class TuneTable:
    """[tune]: the search for hyperparameters that `edgetune tune` makes."""

    space: dict[str, Any] = field(default_factory=dict)
    """Keys like "train.learning_rate" -> { low, high, log, step } or a list of choices, as tune/space.py reads them.
    Without it the usual keys, around the recipe's values."""
    trials: int = _at(20, least=1)
    """The study ends with so many, and before that when minutes or tokens are used up."""
    minutes: float | None = _at(None, above=0.0)
    """Of all trials together, on all workers."""
    tokens: int | None = _at(None, least=1, most=10**15)
    """Trained on by all trials together."""
    sampler: Literal["random", "grid", "tpe", "gp", "cmaes"] = "tpe"
    """How values are chosen: tree-structured Parzen estimators (Bergstra et al. 2011), a Gaussian process, CMA-ES."""
    pruner: Literal["auto", "none", "halving", "hyperband"] = "auto"
    """Which trials are given up on their eval loss: by successive halving (arXiv:1810.05934) or Hyperband
    (arXiv:1603.06560). auto: halving, of several objectives none."""
    seed: int = _at(0, least=0)
    """Of the search; train.seed is the trainings'."""
    storage: str | None = _filled(None)
    """URL of a database that workers share, e.g. "postgresql+psycopg://host/name"; without it the study's own file."""
    score_of: Literal["deployed", "trained"] = "deployed"
    """Scored is the merged model on the grid of [export], as it will run, or the adapter on the base it was trained
    on."""
    objectives: tuple[Literal["score", "loss", "bundle_bytes", "device_bytes", "tokens_per_s", "train_bytes"], ...] = (
        "score",
    )
    """What is sought on the eval rows: the best by evaluate.metric. With several the Pareto front is kept."""
    seeds: int = _at(3, least=1)
    """Trainings of the best recipe, and of the one it began with, each with another seed; 1: none."""
    warm_start: bool = True
    """Begin with the recipe's own values and the best of earlier studies on the same base."""


@dataclass(frozen=True)
class ExportTable:
    """[export]: the merge and the bundle."""

    precision: Literal["int4", "int2", "int8", "fp16", "fp32"] = "int4"
    """int2 is an experiment: two bits for a decoder's layers, embedding and head as head_bits says."""
    merge_base: Literal["trained", "original", "auto"] = "trained"
    """Merge on the dequantised 4-bit base that was trained, on the 16-bit original, or on which of them loses less."""
    block_size: Literal[16, 32, 64, 128, 256] = 128
    """Weights that share one scale; of a classifier 32."""
    symmetric: bool = False
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    """MatMulNBits: 4 multiplies in int8 (fast), 0 in the type of the activations."""
    head_bits: Literal[4, 8] = 8
    """Bits of the output head and the embedding, never fewer than the rest has."""
    int8_layers: tuple[str, ...] = ()
    """A decoder's matrices that keep 8 bits, by name or the end of it: "model.layers.0.mlp.down_proj", "o_proj"."""
    method: Literal["auto", "rtn", "search", "hqq", "gptq", "awq"] = "auto"
    """How weights are rounded: with scales from the extremes of a block (rtn), those of least squared error (search) or
    of least error in a norm that forgives outliers (hqq: Half-Quadratic Quantization, Badri and Shaji 2023); or so that
    the layers' outputs on calibration_rows change least (gptq, arXiv:2210.17323), input channels scaled before (awq,
    arXiv:2306.00978). auto: gptq for 2 and 4 bits, search for 8 bits or without calibration_rows."""
    calibration_rows: int = _at(1024, least=0)
    """Training rows that gptq and awq round for."""
    min_gain_kept: float = _at(0.97, least=0.0, most=1.0)
    """Least share of what fine-tuning gained, in score and in loss, that a bundle must keep; below it is refused."""
    on_grid_steps: int = _at(0, least=0)
    """Steps in which the merged weights are trained on, rounded in every forward pass, before they are rounded for good
    (straight-through; LR-QAT, arXiv:2406.06385). Holds the weights in float32; 0: none."""
    on_grid_learning_rate: float = _at(1e-4, above=0.0)
    repair_steps: int = _at(100, least=0)
    """Steps in which a decoder's scales, norms and biases are trained on the grid, its integers frozen; 0: none."""
    repair_on: Literal["labels", "teacher", "both"] = "labels"
    """What repair learns, and on_grid_steps too: the rows' own answers, the merged model's probabilities, or both."""
    repair_learning_rate: float = _at(1e-3, above=0.0)
    """How far a step moves: a scale as a share of it, norms and biases as they are."""
    max_length: int | None = _at(None, least=8)
    """Longest text, prompt and answer, in tokens; without it the base's context."""

    @property
    def rounding(self) -> Method:
        """The method, with "auto" decided."""
        if self.method != "auto":
            return self.method
        return "gptq" if self.precision in ("int2", "int4") and self.calibration_rows else "search"

    @property
    def needs_rows(self) -> bool:
        """Whether training rows have a part in it: for calibration, or for repair, which 8 bits do not need."""
        has_few_bits = self.precision in ("int2", "int4")
        return has_few_bits or (self.precision == "int8" and self.rounding in CALIBRATED)


@dataclass(frozen=True)
class EvaluateTable:
    """[evaluate]: how answers are scored."""

    metric: Literal[
        "exact_match",
        "json",
        "final_number",
        "token_f1",
        "rouge_l",
        "chrf",
        "check",
        "loss",
        "accuracy",
        "macro_f1",
        "f1",
    ] = "exact_match"
    """exact_match: the same text; json: the same JSON value, with fields scored too; final_number: ends with the same
    number, as GSM8K; token_f1, rouge_l, chrf: how much two texts share; check: what your own function says; loss: no
    generation. Of classifiers: accuracy, macro_f1 (mean over labels), f1 of classify.positive_label."""
    check: str | None = _filled(None)
    """A Python file with `def check(answer, row) -> bool`, for the metric check."""
    check_seconds: float = _at(10.0, above=0.0)
    """A row whose check takes longer has failed."""
    max_rows: int | None = _at(None, least=1)
    """Score the first rows only, a seeded sample."""
    max_new_tokens: int = _at(128, least=1)
    folds: int | None = _at(None, least=2)
    """Cross-validate: so many trainings, each scored on a part of the training rows that it has not seen."""
    folds_by: str | None = _filled(None)
    """A column whose rows with the same value are in one fold: of the same speaker, document, patient."""
    bootstrap_samples: int = _at(1000, least=100)
    confidence: float = _at(0.95, least=0.5, most=0.999)


@dataclass(frozen=True)
class BudgetTable:
    """[budget]: what the run may cost; `edgetune plan` compares its estimate with it."""

    memory: str | None = None
    """Peak memory of any stage, e.g. "2 GiB"."""
    gpu_memory: str | None = None
    """Memory of the GPU that the run may use, e.g. "8 GiB": planned for on any machine, a hard limit on a GPU."""
    minutes: float | None = _at(None, above=0.0)
    device_memory: str | None = None
    """Peak memory of the bundle's process on the device, for `edgetune export --search`, e.g. "48 MiB"."""
    min_tokens_per_s: float | None = _at(None, above=0.0)
    """Decoding speed that `edgetune export --search` must reach on this machine."""


@dataclass(frozen=True)
class Recipe:
    """One run, whole. `name` is the file's stem and the default name of the run folder."""

    model: ModelTable
    data: DataTable
    lora: LoraTable = LoraTable()
    train: TrainTable = TrainTable()
    export: ExportTable = ExportTable()
    evaluate: EvaluateTable = EvaluateTable()
    budget: BudgetTable = BudgetTable()
    classify: ClassifyTable = ClassifyTable()
    tune: TuneTable = TuneTable()
    name: str = "run"

    @property
    def is_classifier(self) -> bool:
        """Whether the recipe trains a classifier."""
        return self.model.task == "classification"

    @property
    def learned(self) -> str:
        """What the loss is a mean over, one of them."""
        return "text" if self.is_classifier else "trained token"

    @property
    def batch_size(self) -> int:
        """train.batch_size as a number; the default's while it is "auto", which model.fit.settle decides."""
        size = self.train.batch_size
        if size != "auto":
            return size
        return int(CLASSIFIER_DEFAULTS["train"]["batch_size"]) if self.is_classifier else 4

    @property
    def gradient_checkpointing(self) -> bool:
        """train.gradient_checkpointing; no while it is "auto", which model.fit.settle decides."""
        return self.train.gradient_checkpointing is True

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Keys that the recipe gives a value of their own and that do nothing for its task."""
        if not self.is_classifier:
            return ()
        named = [key.partition(".")[::2] for key in DECODER_KEYS]
        return tuple(
            f"{table}.{key}"
            for table, key in named
            if getattr(getattr(self, table), key) != getattr(TABLES[table], key)
        )

    def with_classify(self, **changes: Any) -> Recipe:
        """The recipe with other values in [classify]."""
        return dataclasses.replace(self, classify=dataclasses.replace(self.classify, **changes))

    def to_toml(self) -> str:
        """The recipe as TOML, every key that has a value; loads back to an equal recipe."""
        parts = []
        for table in TABLES:
            if (table == "classify" and not self.is_classifier) or (table == "tune" and self.tune == TuneTable()):
                continue
            values = dataclasses.asdict(getattr(self, table))
            lines = [f"{key} = {as_toml(value)}" for key, value in values.items() if value not in (None, {})]
            if lines:
                parts.append("\n".join([f"[{table}]", *lines]))
        return "\n\n".join(parts) + "\n"


CLASSIFIER_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"max_seq_len": 128, "too_long": "truncate"},
    "train": {"epochs": 8.0, "batch_size": 32, "gradient_accumulation_steps": 1, "schedule": "linear"},
    "export": {"block_size": 32},
    "evaluate": {"metric": "accuracy"},
}
"""What a key is without a word in the recipe where model.task is "classification"; other keys as in the tables."""

DECODER_KEYS = (
    "data.format",
    "data.system",
    "data.loss_on",
    "data.packing",
    "train.fused_loss",
    "export.head_bits",
    "export.int8_layers",
    "export.on_grid_steps",
    "export.on_grid_learning_rate",
    "export.repair_steps",
    "export.repair_on",
    "export.repair_learning_rate",
    "export.max_length",
    "evaluate.max_new_tokens",
)
"""What changes nothing of a classifier: a recipe that is shared between tasks may have it."""

TABLES: dict[str, type] = {
    "model": ModelTable,
    "data": DataTable,
    "classify": ClassifyTable,
    "lora": LoraTable,
    "train": TrainTable,
    "tune": TuneTable,
    "export": ExportTable,
    "evaluate": EvaluateTable,
    "budget": BudgetTable,
}


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, apply `table.key=value` overrides, check everything.

    Relative paths in [model] and [data] stay as written: they are relative to the current folder, as on a command line.
    Raises RecipeError with one line for each problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe", cure="give the path of a .toml file") from None
    except OSError as error:
        raise RecipeError(f"{shown(str(path))}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    return parse_recipe(text, source=str(path), name=path.stem, overrides=overrides)


def parse_recipe(text: str, *, source: str, name: str = "run", overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML text; `source` names it in messages. Raises RecipeError."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of brackets without end
        raise RecipeError(f"{source}: not valid TOML: {error}") from None
    places = _line_numbers(text)
    problems: list[str] = []

    def place(table: str, key: str | None = None) -> str:
        line = places.get((table, key))
        where = f"{source}:{line}" if line else source
        return f"{where}: {table}.{key}" if key else f"{where}: [{table}]"

    set_places: dict[tuple[str, str], str] = {}
    for override in overrides:
        problem = _apply_override(raw, override, set_places)
        if problem:
            problems.append(problem)

    tables = {}
    defaults = CLASSIFIER_DEFAULTS if _task(raw) == "classification" else {}
    for table, values in raw.items():
        if table not in TABLES:
            problems.append(f"{place(table)}: unknown table; {_closest(table, TABLES)}")
        elif not isinstance(values, dict):
            problems.append(f"{place(table)}: must be a table")
    for table, kind in TABLES.items():
        values = raw.get(table, {})
        if not isinstance(values, dict):
            continue
        checked, found = check_table(kind, values)
        for key, problem in found:
            where = f"--set {table}.{key}" if (table, key) in set_places else place(table, key)
            problems.append(f"{where}: {problem}")
        tables[table] = {**defaults.get(table, {}), **checked}
    if problems:
        if len(problems) == 1:
            raise RecipeError(problems[0])
        raise RecipeError("\n".join([f"{len(problems)} problems", *problems]), problems=problems)
    recipe = Recipe(**{table: TABLES[table](**values) for table, values in tables.items()}, name=name)
    if problem := _contradiction(recipe, raw):
        raise RecipeError(f"{source}: {problem}")
    for key in ("memory", "gpu_memory", "device_memory"):
        parse_size(getattr(recipe.budget, key), where=f"{source}: budget.{key}")
    return recipe


def _task(raw: Mapping[str, Any]) -> Any:
    """model.task as it is written, right or wrong."""
    model = raw.get("model")
    return model.get("task") if isinstance(model, dict) else None


def problem_with(recipe: Recipe) -> str | None:
    """What two keys of a recipe say against each other, if anything: for one whose values were changed in memory."""
    return _contradiction(recipe, {})


def _contradiction(recipe: Recipe, raw: Mapping[str, Any]) -> str | None:
    """What two tables say against each other, if anything."""
    metric = recipe.evaluate.metric
    if problem := _rounding_problem(recipe) or _tuning_problem(recipe):
        return problem
    if problem := _plateau_problem(recipe.train):
        return problem
    if recipe.evaluate.folds_by is not None and recipe.evaluate.folds is None:
        return "evaluate.folds_by: groups the rows of folds; set evaluate.folds too"
    if recipe.train.offload_activations and recipe.train.gradient_checkpointing is False:
        return "train.offload_activations: moves what gradient_checkpointing keeps; set that too"
    if recipe.model.embedding_quantization != "none":
        if recipe.is_classifier:
            return "model.embedding_quantization: is of decoders; leave it out of a classifier"
        if recipe.lora.train_embeddings:
            return "lora.train_embeddings: trains what model.embedding_quantization freezes; leave one of the two out"
    if not recipe.is_classifier:
        if "classify" in raw:
            return '[classify]: needs model.task = "classification"'
        if metric in CLASSIFIER_METRICS:
            return f'evaluate.metric = "{metric}": needs model.task = "classification"'
        if metric == "check" and recipe.evaluate.check is None:
            return 'evaluate.metric = "check": name the Python file in evaluate.check'
        return None
    if recipe.data.swapped_copies:
        return "data.swapped_copies: is for answers in JSON; leave it out of a classifier"
    if recipe.lora.train_embeddings:
        return "lora.train_embeddings: a classifier's embedding stays as it is; leave it out"
    if metric not in CLASSIFIER_METRICS:
        return f'evaluate.metric = "{metric}": a classifier has {", ".join(CLASSIFIER_METRICS)}'
    if metric == "f1" and recipe.classify.positive_label is None:
        return 'evaluate.metric = "f1": name the label in classify.positive_label'
    if recipe.classify.multi_label and recipe.classify.out_of_scope_label is not None:
        return "classify.out_of_scope_label: with multi_label a text that no label fits has none; leave this key out"
    return None


def _plateau_problem(table: TrainTable) -> str | None:
    """What schedule = "plateau" has against other keys, or they have without it, if anything."""
    if table.schedule != "plateau":
        for key in ("plateau_patience", "plateau_factor"):
            if getattr(table, key) != getattr(TrainTable(), key):
                return f'train.{key}: has no effect on schedule = "{table.schedule}"; take "plateau", or leave it out'
        return None
    stop = table.early_stopping_patience
    if stop is not None and stop <= table.plateau_patience:
        return (
            f"train.early_stopping_patience = {stop}: ends training before plateau_patience = "
            f"{table.plateau_patience} has lowered the learning rate; raise it"
        )
    return None


def _rounding_problem(recipe: Recipe) -> str | None:
    """What the keys of [export] that say how weights are rounded have against each other, if anything."""
    table = recipe.export
    if table.method in CALIBRATED and not table.calibration_rows:
        return f'export.method = "{table.method}": has no rows; raise export.calibration_rows, or take "search"'
    on_grid_steps = 0 if recipe.is_classifier else table.on_grid_steps
    if table.method != "auto" and on_grid_steps:
        return "export.method: on_grid_steps round in a way of their own; leave one of the two out"
    if table.method == "awq" and recipe.is_classifier:
        return 'export.method = "awq": is for decoders; a classifier takes "gptq"'
    if table.precision not in ("int2", "int4") and not recipe.is_classifier:
        for key in ("int8_layers", "on_grid_steps"):
            if getattr(table, key):
                return f'export.{key}: has no effect on precision = "{table.precision}"; leave it out'
    if table.precision != "int2":
        return None
    if recipe.is_classifier:
        return 'export.precision = "int2": is for decoders; a classifier takes "int4"'
    if table.block_size not in INT2_BLOCK_SIZES or table.accuracy_level != 4:
        sizes = ", ".join(map(str, INT2_BLOCK_SIZES))
        return f'export.precision = "int2": onnxruntime is fast with block_size {sizes} and accuracy_level 4 only'
    if on_grid_steps:
        return 'export.precision = "int2": on_grid_steps are for "int4"; leave them out'
    return None


def _tuning_problem(recipe: Recipe) -> str | None:
    """What the keys of [tune] have against each other, or against the others, if anything."""
    table = recipe.tune
    wanted = table.objectives
    if not wanted or len(set(wanted)) < len(wanted):
        return "tune.objectives: names each objective once, and at least one"
    if len(wanted) > 1 and table.pruner not in ("auto", "none"):
        return f'tune.pruner = "{table.pruner}": gives trials up by one objective, there are {len(wanted)}'
    if len(wanted) > 1 and table.sampler == "cmaes":
        return 'tune.sampler = "cmaes": seeks one objective; take "tpe" or "gp" for several'
    if recipe.is_classifier and "tokens_per_s" in wanted:
        return 'tune.objectives: "tokens_per_s" is of decoders; leave it out of a classifier'
    return None


def unknown_key(name: str) -> str | None:
    """What to tell of a name that is no key like "train.epochs"; None for one that is."""
    known = [f"{table}.{item.name}" for table, kind in TABLES.items() for item in dataclasses.fields(kind)]
    if name in known:
        return None
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no such key; {f'did you mean {close[0]!r}?' if close else 'name it like train.learning_rate'}"


def check_value(name: str, value: Any) -> tuple[Any, str | None]:
    """The value of a key like "train.epochs" in its type, or what is wrong with it."""
    table, _, key = name.partition(".")
    checked, problems = check_table(TABLES[table], {key: value})
    return checked.get(key), next((problem for place, problem in problems if place == key), None)


def number_kind(name: str) -> type | None:
    """float or int, where a key like "train.epochs" takes any such number; None where it does not."""
    table, _, key = name.partition(".")
    hint = typing.get_type_hints(TABLES[table])[key]
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return next((kind for kind in (float, int) if kind in options), None)


def check_table(kind: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of one table in the types of `kind`, and (key, problem) for each that cannot stand."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for key, value in values.items():
        if key not in fields:
            problems.append((key, f"unknown key; {_closest(key, fields)}"))
            continue
        converted, problem = _convert(value, hints[key])
        problem = problem or _out_of_bounds(converted, fields[key].metadata)
        if problem:
            problems.append((key, problem))
        else:
            checked[key] = converted
    missing = [
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and name not in values
    ]
    problems += [(name, "missing; this key has no default") for name in missing]
    return checked, problems


def parse_size(text: str | None, *, where: str = "size") -> int | None:
    """Bytes in "2 GiB", "512 MiB", "8GB" or "8G" (GB and G are read as GiB); None for None. Raises RecipeError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])i?B?\s*", text, re.IGNORECASE)
    if not match:
        raise RecipeError(f"{where}: {shown(text)} is not a size", cure='write it as "2 GiB" or "512 MiB"')
    size = int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))
    if not size:
        raise RecipeError(
            f"{where}: {shown(text)} leaves no room for anything", cure='write it as "2 GiB" or "512 MiB"'
        )
    return size


def _apply_override(raw: dict[str, Any], override: str, set_places: dict[tuple[str, str], str]) -> str | None:
    """Put one `table.key=value` into the raw tables; the problem with it, if any."""
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().replace("-", "_").partition(".")
    if not (equals and dot and table and key):
        return f"--set {override}: must be table.key=value, e.g. train.learning_rate=1e-4"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    values = raw.setdefault(table, {})
    if isinstance(values, dict):
        values[key] = value
        set_places[(table, key)] = override
    return None


def _convert(value: Any, hint: Any) -> tuple[Any, str | None]:
    """The value in the type of the hint, or why it is none. Integers serve as floats; nothing else is converted."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        accepted, converted = _accept(value, option)
        if accepted:
            return converted, None
    wanted = " or ".join(_describe(option) for option in options if option is not type(None))
    return None, f"{shown(value)} is not {wanted}"


def _accept(value: Any, option: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args), value
    if origin is tuple:
        if isinstance(value, list) and all(_accept(item, args[0])[0] for item in value):
            return True, tuple(value)
        return False, None
    if origin is dict:
        is_plain = args[1] is Any
        return isinstance(value, dict) and all(is_plain or isinstance(item, str) for item in value.values()), value
    if option is float and type(value) in (int, float):
        is_finite = abs(value) <= sys.float_info.max  # also of an integer that no float holds
        return is_finite, float(value) if is_finite else value
    return type(value) is option, value


def _describe(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    names = {int: "an integer", float: "a number", str: "a text in quotes", bool: "true or false"}
    return names.get(option, "a table" if args[1:] == (Any,) else "a table of texts")


def _out_of_bounds(value: Any, bounds: Mapping[str, Any]) -> str | None:
    if value == "" and bounds.get("filled"):
        return "is empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    least, most, above = bounds.get("least"), bounds.get("most"), bounds.get("above")
    if above is not None and value <= above:
        return f"{shown(value)} must be greater than {above:g}"
    if least is not None and value < least:
        return f"{shown(value)} must be at least {least:g}"
    if most is not None and value > most:
        return f"{shown(value)} must be at most {most:g}"
    if most is None and isinstance(value, int) and abs(value) > MOST:
        return f"is beyond {MOST:,}, which is more than anything here can mean"
    return None


def _closest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'?" if matches else f"known: {', '.join(known)}"


def _line_numbers(text: str) -> dict[tuple[str, str | None], int]:
    """(table, key) -> line, read from the plain layout that recipes have; (table, None) for the header."""
    places: dict[tuple[str, str | None], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            table = header[1]
            places.setdefault((table, None), number)
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            places.setdefault((table, key[1]), number)
            if not table:
                places.setdefault((key[1], None), number)
    return places


def as_toml(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return repr(value)
