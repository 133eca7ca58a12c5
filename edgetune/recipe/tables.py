"""The tables of a recipe, one a stage: every key with its type, its bounds and its default.

The table that only one task has stands beside that task (task.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgetune.metric_names import MetricName
from edgetune.precision_names import BlockSize, PrecisionName
from edgetune.recipe.task import OWN_TABLES
from edgetune.recipe.values import at, filled
from edgetune.task_names import TaskName

Method = Literal["rtn", "search", "hqq", "gptq", "awq"]
"""Of rounding weights to the grid; quantize.methods has them all."""
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
"""Those that look at training rows."""
INT2_BLOCK_SIZES = (32, 64, 128)
"""For which onnxruntime's CPU multiplies two bits as they are; else it unpacks the whole matrix for every token."""


@dataclass(frozen=True)
class ModelTable:
    """[model]: the base that is fine-tuned and how it is held in memory."""

    base: str = filled()
    """Local folder, hub id, .gguf file, or `edgetune:nano`."""
    task: TaskName = "generation"
    """A decoder that answers, or an encoder with a head that labels texts, for which there is a table of its own."""
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

    train: str = filled()
    """File (.jsonl .json .csv .tsv .parquet, also .gz), folder, hub dataset id, or `edgetune:home`."""
    eval: str | None = filled(None)
    """Rows for the loss during training; without it `eval_fraction` of train is set apart."""
    test: str | None = filled(None)
    """Rows for the reported scores, looked at once; without it the eval rows serve."""
    format: Literal["auto", "messages", "prompt-completion", "alpaca", "sharegpt", "text"] = "auto"
    """How rows are laid out; auto: by their columns."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the file's, e.g. {prompt = "question", completion = "answer"}."""
    system: str | None = None
    """System message put before rows that have none."""
    swapped_copies: int = at(0, least=0)
    """Copies of each train row whose answer in JSON copies values from its question, with values of other rows."""
    eval_fraction: float = at(0.05, above=0.0, most=0.5)
    """Of the train rows, where there are no eval rows."""
    max_train_rows: int | None = at(None, least=1)
    """Learn from so many rows at most, the first."""
    max_seq_len: int = at(1024, least=8)
    """Length in tokens of a training sequence."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What becomes of a row longer than max_seq_len; the number of such rows is always shown."""
    loss_on: Literal["completion", "all"] = "completion"
    """Which tokens are learned: the answers, or all."""
    packing: bool = True
    """Fill sequences with several rows that cannot see each other."""


@dataclass(frozen=True)
class LoraTable:
    """[lora]: the adapter (LoRA, arXiv:2106.09685), in PEFT's words."""

    r: int = at(16, least=1)
    """Rank: inner size of the two matrices whose product changes a weight."""
    alpha: float = at(32.0, above=0.0)
    """The change counts alpha / r times."""
    dropout: float = at(0.0, least=0.0, most=0.95)
    """Share of the inputs of the adapter that is left out in a training step."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter, by the end of their names; all-linear: all but the output head."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (rsLoRA, arXiv:2312.03732)."""
    train_embeddings: bool = False
    """Train the embedding whole beside the adapter, and the output head (with it where they are tied): PEFT's
    modules_to_save. Costs 16 bytes a weight; wins much where the base is small or its words are not yours."""
    use_dora: bool = False
    """Learn magnitudes apart (DoRA, arXiv:2402.09353)."""
    init_from: str | None = filled(None)
    """Adapter folder to go on from, made by EdgeTune, PEFT, TRL or Unsloth; its r, alpha and targets hold."""


@dataclass(frozen=True)
class TrainTable:
    """[train]: the loop."""

    seed: int = at(0, least=0)
    """Of the order of rows, the adapter's start, dropout, and what is drawn from rows."""
    epochs: float = at(2.0, above=0.0)
    """Passes over the train rows."""
    max_steps: int | None = at(None, least=1)
    """Optimizer steps, whatever `epochs` says: the rows are gone through again as often as it takes."""
    batch_size: Literal["auto"] | int = at(4, least=1)
    """Sequences in one micro-batch; auto: as many as fit the memory, a step having as many as with the default."""
    gradient_accumulation_steps: int = at(4, least=1)
    """Micro-batches in an optimizer step."""
    learning_rate: Literal["auto"] | float = at("auto", above=0.0)
    """auto: 5e-4 * (2000 / hidden_size) ** p, p = 0.781 for Llama shapes and 0.0775 for Qwen."""
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "cosine"
    """plateau: constant, until the eval loss stops falling."""
    plateau_patience: int = at(1, least=1)
    """Evaluations without a better loss after which schedule = "plateau" halves the learning rate."""
    warmup_ratio: float = at(0.03, least=0.0, most=1.0)
    """Share of the steps in which the learning rate rises to its highest."""
    min_learning_rate_ratio: float = at(0.1, least=0.0, most=1.0)
    """Where linear and cosine end, and below which plateau never goes, as a share of the learning rate."""
    weight_decay: float = at(0.0, least=0.0)
    """AdamW's, of matrices."""
    max_grad_norm: float = at(1.0, above=0.0)
    """Longer gradients are cut to this length."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW with moments in float32 or in 8 bits; paged: on a GPU they move to host memory where room is short."""
    fused_loss: bool = True
    """Logits of a few positions at a time, their gradients at once; false: of all at once. A decoder's."""
    gradient_checkpointing: Literal["auto"] | bool = False
    """Keep only the layers' inputs and compute each layer again on the way back, in repair too: a third slower, far
    less memory. auto: where no training fits without it."""
    offload_activations: bool = False
    """Keep these inputs in host memory while they wait. Needs gradient_checkpointing and a GPU."""
    use_liger_kernel: bool = False
    """Liger's fused norms, rotary embeddings and MLPs. Needs a GPU and the package liger-kernel."""
    eval_steps: Literal["auto"] | int = at("auto", least=1)
    """Optimizer steps between evaluations; auto: about ten in a run, on a part of the eval rows where they are many."""
    early_stopping_patience: int | None = at(None, least=1)
    """Stop after this many evaluations without a better loss."""
    on_overfitting: Literal["warn", "dropout", "weight_decay"] = "warn"
    """What is done where the eval loss rises while the training loss falls: a line, or this is raised as well."""
    divergence_restarts: int = at(2, least=0)
    """How often a training whose loss becomes no number, or stays far above its best, goes on from its last sound
    checkpoint at 0.3 of the learning rate; then it is an error."""
    checkpoint_steps: Literal["auto"] | int = at("auto", least=1)
    """Optimizer steps between checkpoints; auto: at every evaluation."""
    changes: tuple[dict[str, Any], ...] | None = None
    """Values from some step on, as a population has found them: [{ after_step = 40, "train.learning_rate" = 1e-4 }].
    Of train.learning_rate, which the schedule multiplies, train.weight_decay and lora.dropout."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where every metric is logged too."""


@dataclass(frozen=True)
class TuneTable:
    """[tune]: the search for hyperparameters that `edgetune tune` makes."""

    space: dict[str, Any] = field(default_factory=dict)
    """Keys like "train.learning_rate" -> { low, high, log, step } or a list of choices, as tune/space.py reads them.
    Without it the usual keys, around the recipe's values."""
    trials: int = at(20, least=1)
    """The study ends with so many, and before that when minutes or tokens are used up."""
    minutes: float | None = at(None, above=0.0)
    """Of all trials together, on all workers."""
    tokens: int | None = at(None, least=1, most=10**15)
    """Trained on by all trials together."""
    sampler: Literal["auto", "random", "grid", "tpe", "gp", "cmaes"] = "auto"
    """How values are chosen: tree-structured Parzen estimators (Bergstra et al. 2011), a Gaussian process, CMA-ES.
    auto: a grid that `trials` go through whole, else for few trials over ranges a Gaussian process, else tpe."""
    pruner: Literal["auto", "none", "halving", "hyperband"] = "auto"
    """Which trials are given up on their eval loss: by successive halving (arXiv:1810.05934) or Hyperband
    (arXiv:1603.06560). auto: halving; with gp, and of several objectives, none."""
    seed: int = at(0, least=0)
    """Of the search; train.seed is the trainings'."""
    storage: str | None = filled(None)
    """URL of a database that workers share, e.g. "postgresql+psycopg://host/name"; without it the study's own file."""
    score_of: Literal["deployed", "exported", "trained"] = "deployed"
    """What is scored. exported: the merged model as export makes it, calibrated and repaired, at what that costs in
    every trial; deployed: the merged model on the grid of [export], each weight rounded by itself; trained: the adapter
    on the base it was trained on."""
    objectives: tuple[Literal["score", "loss", "bundle_bytes", "device_bytes", "tokens_per_s", "train_bytes"], ...] = (
        "score",
    )
    """What is sought on the eval rows: the best by evaluate.metric. With several the Pareto front is kept."""
    seeds: int = at(3, least=1)
    """Trainings of the best recipe, and of the one it began with, each with another seed; 1: none."""
    warm_start: bool = True
    """Begin with the recipe's own values and the best of earlier studies on the same base."""
    population: int | None = at(None, least=2)
    """Population-based training (arXiv:1711.09846) instead of trials: so many trainings, of which after each evaluation
    the worst quarter goes on from the best quarter's checkpoints with other values."""
    workers: int | None = at(None, least=1)
    """Of a population so many train at the same time; without it as many as there are GPUs, or cores, and memory."""
    ray_address: str | None = filled(None)
    """Of a Ray cluster on which a population trains, "auto" or "host:6379"; without it Ray runs on this machine."""


@dataclass(frozen=True)
class ExportTable:
    """[export]: the merge and the bundle."""

    precision: PrecisionName = "int4"
    """int2 is an experiment: two bits for a decoder's layers, embedding and head as head_bits says."""
    merge_base: Literal["trained", "original", "auto"] = "trained"
    """Merge on the dequantised 4-bit base that was trained, on the 16-bit original, or on which of them loses less."""
    block_size: BlockSize = 128
    """Weights that share one scale; of an encoder 32."""
    symmetric: bool = False
    """A grid without zero points: its middle is 0."""
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
    calibration_rows: int = at(1024, least=0)
    """Training rows that gptq and awq round for."""
    min_gain_kept: float = at(0.97, least=0.0, most=1.0)
    """Least share of what fine-tuning gained, in score and in loss, that a bundle must keep; below it is refused."""
    max_gain_kept: float = at(1.25, least=1.0)
    """More, where the rows show it, was learned after the fine-tune was measured: refused as well."""
    max_kl: float = at(0.1, least=0.0)
    """Farthest, in nats a token or label, that a bundle's probabilities may be from the fine-tune's."""
    max_changed_rows: float = at(0.1, least=0.0, most=1.0)
    """Most rows, as a share, that may be right with one of the two and wrong with the other, or (of a classifier) get
    other labels, where the rows show it."""
    repair_steps: int = at(100, least=0)
    """Steps in which scales, and a decoder's norms and biases, are trained, integers frozen; 0: none. Encoders: 0."""
    repair_on: Literal["labels", "teacher", "both"] = "labels"
    """What repair learns: the rows' own answers, the merged model's probabilities, or both."""
    max_length: int | None = at(None, least=8)
    """Longest text, prompt and answer, in tokens; without it the base's context."""

    @property
    def needs_rows(self) -> bool:
        """Whether training rows have a part in it: for calibration, or for repair, which 8 bits do not need."""
        has_few_bits = self.precision in ("int2", "int4")
        return has_few_bits or (self.precision == "int8" and self.method in CALIBRATED)


@dataclass(frozen=True)
class EvaluateTable:
    """[evaluate]: how answers are scored."""

    metric: MetricName = "exact_match"
    """exact_match: the same text; json: the same JSON value, with fields scored too; final_number: ends with the same
    number, as GSM8K; token_f1, rouge_l, chrf: how much two texts share; check: what your own function says; loss: no
    generation. Of labels: accuracy, macro_f1 (mean over labels), f1 (of the one that counts as positive)."""
    check: str | None = filled(None)
    """A Python file with `def check(answer, row) -> bool`, for the metric check."""
    check_seconds: float = at(10.0, above=0.0)
    """A row whose check takes longer has failed."""
    max_rows: int | None = at(None, least=1)
    """Score so many rows at most, drawn by train.seed."""
    max_new_tokens: int = at(128, least=1)
    """Longest answer that is generated for a score, in tokens."""
    folds: int | None = at(None, least=2)
    """Cross-validate: so many trainings, each scored on a part of the training rows that it has not seen."""
    folds_by: str | None = filled(None)
    """A column whose rows with the same value are in one fold: of the same speaker, document, patient."""


@dataclass(frozen=True)
class BudgetTable:
    """[budget]: what the run may cost; `edgetune plan` holds each stage against it."""

    memory: str | None = None
    """Peak memory of any stage, e.g. "2 GiB"."""
    gpu_memory: str | None = None
    """Memory of the GPU that the run may use, e.g. "8 GiB": planned for on any machine, a hard limit on a GPU."""
    minutes: float | None = at(None, above=0.0)
    """Wall time of the run."""
    device_memory: str | None = None
    """Peak memory of the bundle's process on the device, for `edgetune export-best`, e.g. "48 MiB"."""
    min_tokens_per_s: float | None = at(None, above=0.0)
    """Decoding speed that `edgetune export-best` must reach on this machine."""


TABLES: dict[str, type] = {
    "model": ModelTable,
    "data": DataTable,
    **OWN_TABLES,
    "lora": LoraTable,
    "train": TrainTable,
    "tune": TuneTable,
    "export": ExportTable,
    "evaluate": EvaluateTable,
    "budget": BudgetTable,
}
