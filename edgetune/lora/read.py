"""Adapter folders without a model: read PEFT's files, refuse what cannot be folded, pair A and B with base weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import ModelError, shown
from edgetune.files import read_json
from edgetune.model.base import hash_base, model_tensors
from edgetune.model.weights import Place, read_header, read_tensor
from edgetune.recipe import ModelTable, check_table

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RECORD = "edgetune.json"
AGAIN = "save or copy the adapter again"
HELD = ("base", "revision", "quantization", "double_quantization", "embedding_quantization", "compute_dtype")
"""Keys of edgetune.json that say how training held the base, in the words of [model]."""
PREFIX = "base_model.model."
FAMILY = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?$")
# Kinds of LoRA whose product is not scaling * B @ A on a linear's weight.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
# Initialisations that change the base's weights too, so that A and B alone are not the fine-tune.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _is_patterns(value: Any) -> bool:
    """Whether it is a table whose keys are regular expressions and whose values are numbers, or nothing."""
    try:
        return value is None or all(re.compile(key) and isinstance(item, int | float) for key, item in value.items())
    except (AttributeError, re.error, RecursionError, OverflowError):
        return False


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "alpha_pattern": _is_patterns,
    "rank_pattern": _is_patterns,
    "use_rslora": lambda value: isinstance(value, bool | None),
    "use_dora": lambda value: isinstance(value, bool | None),
    "base_model_name_or_path": lambda value: isinstance(value, str | None),
    "revision": lambda value: isinstance(value, str | None),
}
"""What a value in adapter_config.json must be."""


@dataclass(frozen=True)
class Pair:
    """One LoRA: a (r, in), b (out, r), and with DoRA magnitude (out,)."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA on disk. `pairs` and `replaced` are keyed by the names of base tensors.

    `replaced` has weights that were trained whole, and copies of the base's that PEFT saves beside a LoRA on embedding
    or head: a tensor in both is the pair folded into the copy.
    """

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    """edgetune.json: the base's id and content, and how it was held; {} for an adapter made elsewhere."""
    pairs: Mapping[str, Pair]
    replaced: Mapping[str, Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ModelError if there is none, or if it is no LoRA that EdgeTune can fold."""
    file = folder / CONFIG
    if not file.exists():
        raise ModelError(f"{folder}: no {CONFIG}", cure="give an adapter folder in PEFT's format")
    config = read_json(file, ModelError, cure=AGAIN)
    if "fine_tune_type" in config and "peft_type" not in config:
        raise ModelError(
            f"{folder}: an adapter of mlx-lm, whose format is another one",
            cure="fuse it with mlx_lm.fuse and give the fused model, or train it again",
        )
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder}: a {config.get('peft_type')} adapter", cure="EdgeTune handles LoRA, rsLoRA and DoRA"
        )
    for key in UNSUPPORTED:
        if config.get(key):
            raise ModelError(
                f"{file}: {key} = {shown(config[key])} cannot be merged", cure="train a plain LoRA instead"
            )
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGES_BASE):
        raise ModelError(
            f"{file}: init_lora_weights = {init!r} changed the base's weights, which the adapter does not hold",
            cure="save it with PEFT's path_initial_model_for_weight_conversion",
        )
    for key, is_good in _KINDS.items():
        if not is_good(config.get(key)):
            raise ModelError(f"{file}: {key} is {shown(config[key])}", cure=AGAIN)
    return config


def read_record(folder: Path) -> dict[str, Any]:
    """edgetune.json of an adapter or merged folder, {} where there is none. Raises ModelError if it is damaged."""
    file = folder / RECORD
    record = read_json(file, ModelError, cure=AGAIN) if file.exists() else {}
    held = {key: record[key] for key in HELD if key in record}
    if held.get("base") is None:  # of a merge of an adapter that named none
        held.pop("base", None)
    for key, problem in check_table(ModelTable, held)[1]:
        if key in held:
            raise ModelError(f"{file}: {key}: {problem}", cure=AGAIN)
    return record


def read_adapter(folder: Path, base: Path) -> Adapter:
    """An adapter whose every tensor fits the base in folder `base`.

    Raises ModelError for damaged files, a kind of adapter that cannot be folded, or an adapter of another base.
    """
    config, record = read_adapter_config(folder), read_record(folder)
    if not (folder / WEIGHTS).is_file():
        unsafe = " (adapter_model.bin can run code when it is read)" if (folder / "adapter_model.bin").is_file() else ""
        raise ModelError(f"{folder}: no {WEIGHTS}{unsafe}", cure="save the adapter with PEFT as safetensors")
    tensors = model_tensors(base)
    modules, whole = _group(read_header(folder / WEIGHTS))
    if config.get("ensure_weight_tying"):
        whole = {name: place for name, place in whole.items() if name in tensors}  # the other end of a tie
    pairs = {f"{name}.weight": _pair(folder, name, parts, config) for name, parts in modules.items()}
    replaced = {name: read_tensor(place) for name, place in whole.items()}
    whose = _whose(folder, config, record)
    for name, pair in pairs.items():
        _check_fit(whose, name, (pair.b.shape[0], pair.a.shape[1]), tensors.get(name), base)
    for name, tensor in replaced.items():
        _check_fit(whose, name, tuple(tensor.shape), tensors.get(name), base)
    if not pairs:
        raise ModelError(f"{folder}: {WEIGHTS} holds no LoRA weights")
    if "base_sha256" in record and record["base_sha256"] != hash_base(base):
        raise ModelError(
            f"{whose}: trained on other weights than those in {base}", cure="give the base it was trained on"
        )
    return Adapter(folder, config, record, pairs, replaced)


def tied_weights(model: Any) -> dict[str, str]:
    """Names of weights that a transformers model ties -> the one that holds for both."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def refuse_tied(adapter: Adapter, model: Any) -> None:
    """Raises ModelError if the adapter trained one end of a tie in the model: the two would have to differ then."""
    ties = tied_weights(model)
    replaced = () if adapter.config.get("ensure_weight_tying") else adapter.replaced
    for name in sorted({*ties, *ties.values()} & {*adapter.pairs, *replaced}):
        raise ModelError(
            f"{adapter.folder}: it changes {name}, which the base ties to its other end (embedding and output head)",
            cure="train without embed_tokens and lm_head in target_modules and modules_to_save, or with "
            "ensure_weight_tying (EdgeTune: lora.train_embeddings)",
        )


def _group(places: Mapping[str, Place]) -> tuple[dict[str, dict[str, Place]], dict[str, Place]]:
    """(module -> its LoRA parts, base tensor name -> a weight that was trained whole)."""
    modules: dict[str, dict[str, Place]] = {}
    whole: dict[str, Place] = {}
    for key, place in places.items():
        name = _plain(key).removeprefix(PREFIX).replace(".base_layer", "").replace(".modules_to_save", "")
        if match := FAMILY.match(name):
            modules.setdefault(match["module"], {})[match["part"]] = place
        else:
            whole[name] = place
    return modules, whole


def _plain(key: str) -> str:
    """A key without what torch.compile, DistributedDataParallel and PEFT (an adapter's name) put into it."""
    key = key.removeprefix("module.").replace("_orig_mod.", "")
    return re.sub(r"\.(lora_A|lora_B|lora_magnitude_vector)\.default\b", r".\1", key)


def _pair(folder: Path, module: str, parts: Mapping[str, Place], config: Mapping[str, Any]) -> Pair:
    if not {"lora_A", "lora_B"} <= set(parts):
        raise ModelError(f"{folder}: {module} has {' and '.join(sorted(parts))} only; A and B belong together")
    tensors = {part: read_tensor(place).float() for part, place in parts.items()}
    for part, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{folder}: {module}: {part} holds NaN or infinity", cure="train the adapter again")
    a, b = tensors["lora_A"], tensors["lora_B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ModelError(f"{folder}: {module}: A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply")
    magnitude = tensors.get("lora_magnitude_vector")
    if config.get("use_dora") and magnitude is None:
        raise ModelError(f"{folder}: {module}: use_dora without a magnitude")
    if magnitude is not None and magnitude.numel() != b.shape[0]:
        raise ModelError(
            f"{folder}: {module}: {magnitude.numel()} magnitudes for {b.shape[0]} rows", cure="train the adapter again"
        )
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= 1e30:
        raise ModelError(f"{folder / CONFIG}: {module}: alpha is {shown(alpha)}, not a number of any use")
    rank = a.shape[0]
    if rank == 0:
        raise ModelError(f"{folder}: {module}: A and B have rank 0")
    scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Pair(a, b, scaling, None if magnitude is None else magnitude.flatten())


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the module's path, or its end after a dot (peft.utils.get_pattern_key)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _whose(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    name = record.get("base") or config.get("base_model_name_or_path")
    return f"{folder} (an adapter of {name})" if name else str(folder)


def _check_fit(whose: str, name: str, shape: tuple[int, ...], place: Place | None, base: Path) -> None:
    cure = "give the base it was trained on"
    if place is None:
        raise ModelError(f"{whose}: it changes {name}, which {base} does not have as a weight of its own", cure=cure)
    if shape != place.shape:
        raise ModelError(f"{whose}: {name} is {shape} in it and {place.shape} in {base}", cure=cure)
