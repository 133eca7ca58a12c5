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

Method = Literal["rtn", "search", "hqq", "gptq", "awq"]
"""Of rounding weights to the grid; quant.methods has them all."""
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
    """Optimizer steps; ends training before `epochs` do."""
    batch_size: int = _at(4, least=1)
    """Sequences in one micro-batch."""
    gradient_accumulation_steps: int = _at(4, least=1)
    learning_rate: Literal["auto"] | float = _at("auto", above=0.0)
    """auto: 5e-4 * (2000 / hidden_size) ** p, p = 0.781 for Llama shapes and 0.0775 for Qwen."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: float = _at(0.03, least=0.0, most=1.0)
    min_learning_rate_ratio: float = _at(0.1, least=0.0, most=1.0)
    """Where linear and cosine end, as a share of the learning rate."""
    weight_decay: float = _at(0.0, least=0.0)
    max_grad_norm: float = _at(1.0, above=0.0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    gradient_checkpointing: bool = False
    eval_steps: Literal["auto"] | int = _at("auto", least=1)
    """Optimizer steps between evaluations; auto: about ten in a run."""
    early_stopping_patience: int | None = _at(None, least=1)
    """Stop after this many evaluations without a better loss."""
    checkpoint_steps: Literal["auto"] | int = _at("auto", least=1)
    """Optimizer steps between checkpoints; auto: at every evaluation."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


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
    """What repair learns: the rows' own answers, the merged model's probabilities, or both."""
    repair_learning_rate: float = _at(1e-3, above=0.0)
    """Relative: how far a step moves a scale, as a share of it."""
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

    metric: Literal["exact_match", "json", "loss", "accuracy", "macro_f1", "f1"] = "exact_match"
    """exact_match: the same text; json: the same JSON value, with fields scored too; loss: no generation. Of
    classifiers: accuracy, macro_f1 (mean over labels), f1 of classify.positive_label."""
    max_rows: int | None = _at(None, least=1)
    """Score the first rows only, a seeded sample."""
    max_new_tokens: int = _at(128, least=1)
    bootstrap_samples: int = _at(1000, least=100)
    confidence: float = _at(0.95, least=0.5, most=0.999)


@dataclass(frozen=True)
class BudgetTable:
    """[budget]: what the run may cost; `edgetune plan` compares its estimate with it."""

    memory: str | None = None
    """Peak memory of any stage, e.g. "2 GiB"."""
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
    name: str = "run"

    @property
    def is_classifier(self) -> bool:
        """Whether the recipe trains a classifier."""
        return self.model.task == "classification"

    def with_classify(self, **changes: Any) -> Recipe:
        """The recipe with other values in [classify]."""
        return dataclasses.replace(self, classify=dataclasses.replace(self.classify, **changes))

    def to_toml(self) -> str:
        """The recipe as TOML, every key that has a value; loads back to an equal recipe."""
        parts = []
        for table in TABLES:
            if table == "classify" and not self.is_classifier:
                continue
            values = dataclasses.asdict(getattr(self, table))
            lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if value not in (None, {})]
            if lines:
                parts.append("\n".join([f"[{table}]", *lines]))
        return "\n\n".join(parts) + "\n"


CLASSIFIER_METRICS = ("accuracy", "macro_f1", "f1")
CLASSIFIER_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"max_seq_len": 128, "too_long": "truncate"},
    "train": {"epochs": 8.0, "batch_size": 32, "gradient_accumulation_steps": 1, "schedule": "linear"},
    "export": {"block_size": 32},
    "evaluate": {"metric": "accuracy"},
}
"""What a key is without a word in the recipe where model.task is "classification"; other keys as in the tables."""

TABLES: dict[str, type] = {
    "model": ModelTable,
    "data": DataTable,
    "classify": ClassifyTable,
    "lora": LoraTable,
    "train": TrainTable,
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
    parse_size(recipe.budget.memory, where=f"{source}: budget.memory")
    parse_size(recipe.budget.device_memory, where=f"{source}: budget.device_memory")
    return recipe


def _task(raw: Mapping[str, Any]) -> Any:
    """model.task as it is written, right or wrong."""
    model = raw.get("model")
    return model.get("task") if isinstance(model, dict) else None


def _contradiction(recipe: Recipe, raw: Mapping[str, Any]) -> str | None:
    """What two tables say against each other, if anything."""
    metric, export = recipe.evaluate.metric, recipe.export
    if problem := _rounding_problem(recipe):
        return problem
    if not recipe.is_classifier:
        if "classify" in raw:
            return '[classify]: needs model.task = "classification"'
        if metric in CLASSIFIER_METRICS:
            return f'evaluate.metric = "{metric}": needs model.task = "classification"'
        return None
    if recipe.data.swapped_copies:
        return "data.swapped_copies: is for answers in JSON; leave it out of a classifier"
    if recipe.lora.train_embeddings:
        return "lora.train_embeddings: a classifier's embedding stays as it is; leave it out"
    if metric not in CLASSIFIER_METRICS:
        return f'evaluate.metric = "{metric}": a classifier has {", ".join(CLASSIFIER_METRICS)}'
    if metric == "f1" and recipe.classify.positive_label is None:
        return 'evaluate.metric = "f1": name the label in classify.positive_label'
    if export.head_bits != ExportTable().head_bits:
        return "export.head_bits: a classifier's head stays float; leave it out"
    if export.max_length is not None:
        return "export.max_length: data.max_seq_len is the length of a classifier's texts; leave it out"
    if recipe.classify.multi_label and recipe.classify.out_of_scope_label is not None:
        return "classify.out_of_scope_label: with multi_label a text that no label fits has none; leave this key out"
    return None


def _rounding_problem(recipe: Recipe) -> str | None:
    """What the keys of [export] that say how weights are rounded have against each other, if anything."""
    table = recipe.export
    if table.method in CALIBRATED and not table.calibration_rows:
        return f'export.method = "{table.method}": has no rows; raise export.calibration_rows, or take "search"'
    if table.method != "auto" and table.on_grid_steps:
        return "export.method: on_grid_steps round in a way of their own; leave one of the two out"
    if table.method == "awq" and recipe.is_classifier:
        return 'export.method = "awq": is for decoders; a classifier takes "gptq"'
    if table.precision != "int2":
        return None
    if recipe.is_classifier:
        return 'export.precision = "int2": is for decoders; a classifier takes "int4"'
    if table.block_size not in INT2_BLOCK_SIZES or table.accuracy_level != 4:
        sizes = ", ".join(map(str, INT2_BLOCK_SIZES))
        return f'export.precision = "int2": onnxruntime is fast with block_size {sizes} and accuracy_level 4 only'
    if table.on_grid_steps:
        return 'export.precision = "int2": on_grid_steps are for "int4"; leave them out'
    return None


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
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))


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
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values()), value
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
    return names.get(option, "a table of texts")


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


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
