"""Adapter folders without a model: read PEFT's files, refuse what cannot be folded, pair A and B with base weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import ModelError, shown
from edgetune.files import read_json
from edgetune.lora.peft_format import CONFIG, WEIGHTS, Pair, group, read_pair
from edgetune.model.base import empty_model, hash_base, model_tensors, tied_weights
from edgetune.model.embedding import end_modules
from edgetune.model.weights import Place, read_header, read_tensor
from edgetune.recipe import ModelTable, check_table

RECORD = "edgetune.json"
AGAIN = "save or copy the adapter again"
HELD = ("base", "revision", "quantization", "double_quantization", "embedding_quantization", "compute_dtype")
"""Keys of edgetune.json that say how training held the base, in the words of [model]."""
MLX_WEIGHTS = "adapters.safetensors"
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
    vocabulary: int | None = None
    """Tokens of embedding and head, which are in `replaced`, where they are others than the base's."""
    tied: frozenset[str] = frozenset()
    """Of `replaced`, the weights whose other end is in the file too, and the same."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ModelError if there is none, or if it is no LoRA that EdgeTune can fold."""
    file = folder / CONFIG
    if not file.exists():
        raise _no_adapter(folder)
    config = read_json(file, ModelError, cure=AGAIN)
    is_mlx = "fine_tune_type" in config or "lora_parameters" in config or (folder / MLX_WEIGHTS).is_file()
    if is_mlx and "peft_type" not in config:
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


def _no_adapter(folder: Path) -> ModelError:
    """The error for a folder without an adapter's configuration: what it is instead, where that can be told."""
    inside = sorted(str(file.parent) for file in folder.glob(f"*/{CONFIG}"))
    if inside:
        return ModelError(f"{folder}: no {CONFIG}, adapters are in folders of it", cure=f"give {' or '.join(inside)}")
    if (folder / "config.json").is_file():
        return ModelError(
            f"{folder}: is a model, not an adapter",
            cure="give an adapter folder in PEFT's format; a merged model goes to `edgetune export` as it is",
        )
    return ModelError(f"{folder}: no {CONFIG}", cure="give an adapter folder in PEFT's format")


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


def named_base(config: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The base (folder or hub id) that an adapter says it belongs to, and its revision; nothing where it says none."""
    base = record.get("base") or config.get("base_model_name_or_path")
    return base, record.get("revision") or config.get("revision")


def read_adapter(folder: Path, base: Path) -> Adapter:
    """An adapter whose every tensor fits the base in folder `base`.

    Raises ModelError for damaged files, a kind of adapter that cannot be folded, or an adapter of another base.
    """
    config, record = read_adapter_config(folder), read_record(folder)
    if not (folder / WEIGHTS).is_file():
        unsafe = " (adapter_model.bin can run code when it is read)" if (folder / "adapter_model.bin").is_file() else ""
        raise ModelError(f"{folder}: no {WEIGHTS}{unsafe}", cure="save the adapter with PEFT as safetensors")
    tensors = model_tensors(base)
    modules, whole = group(folder, read_header(folder / WEIGHTS))
    if config.get("ensure_weight_tying"):
        whole = {name: place for name, place in whole.items() if name in tensors}  # the other end of a tie
    pairs = {f"{name}.weight": read_pair(folder, name, parts, config) for name, parts in modules.items()}
    replaced = {name: read_tensor(place) for name, place in whole.items()}
    for name, tensor in replaced.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{folder}: {name} holds NaN or infinity", cure="train the adapter again")
    adapter = _resized(_one_end(Adapter(folder, config, record, pairs, replaced), tensors, base), tensors, base)
    whose = _whose(folder, config, record)
    for name, pair in adapter.pairs.items():
        _check_fit(whose, name, (pair.b.shape[0], pair.a.shape[1]), _shape(adapter, name, tensors), base)
    for name, tensor in adapter.replaced.items():
        _check_fit(whose, name, tuple(tensor.shape), _shape(adapter, name, tensors), base)
    if not pairs:
        raise ModelError(f"{folder}: {WEIGHTS} holds no LoRA weights")
    if "base_sha256" in record and record["base_sha256"] != hash_base(base):
        raise ModelError(
            f"{whose}: trained on other weights than those in {base}", cure="give the base it was trained on"
        )
    return adapter


def refuse_tied(adapter: Adapter, model: Any) -> None:
    """Raises ModelError if the adapter trained one end of a tie in the model: the two would have to differ then."""
    ties = tied_weights(model)
    replaced = () if adapter.config.get("ensure_weight_tying") else adapter.replaced.keys() - adapter.tied
    for name in sorted({*ties, *ties.values()} & {*adapter.pairs, *replaced}):
        raise ModelError(
            f"{adapter.folder}: it changes {name}, which the base ties to its other end (embedding and output head)",
            cure="train without embed_tokens and lm_head in target_modules and modules_to_save, or with "
            "ensure_weight_tying (EdgeTune: lora.train_embeddings)",
        )


def _one_end(adapter: Adapter, tensors: Mapping[str, Place], base: Path) -> Adapter:
    """The adapter without the second copy of a tied weight that PEFT has saved whole. Raises ModelError as above."""
    absent = {*adapter.pairs, *adapter.replaced} - set(tensors)
    if not absent:
        return adapter
    model = empty_model(base)
    ties = {name: kept for name, kept in tied_weights(model).items() if name in absent}
    both = {name: kept for name, kept in ties.items() if {name, kept} <= adapter.replaced.keys() - adapter.pairs.keys()}
    same = {name: kept for name, kept in both.items() if adapter.replaced[name].equal(adapter.replaced[kept])}
    if ties.keys() - same.keys():
        refuse_tied(adapter, model)
    whole = {name: tensor for name, tensor in adapter.replaced.items() if name not in same}
    return dataclasses.replace(adapter, replaced=whole, tied=frozenset(same.values()))


def _resized(adapter: Adapter, tensors: Mapping[str, Place], base: Path) -> Adapter:
    """The adapter with its vocabulary, if that has another size than the base's.

    Raises ModelError unless it brings the whole of embedding and head in that size, and a tokenizer.
    """
    changed = [name for name, tensor in adapter.replaced.items() if _is_other_height(tensor, tensors.get(name))]
    if not changed:
        return adapter
    ends = [f"{name}.weight" for name in end_modules(empty_model(base)) if f"{name}.weight" in tensors]
    sizes = {len(adapter.replaced[name]) if name in adapter.replaced else None for name in ends}
    if not set(changed) <= set(ends):
        return adapter
    size = len(adapter.replaced[changed[0]])
    if sizes != {size}:
        raise ModelError(
            f"{adapter.folder}: its vocabulary of {size} tokens is another than the base's, and embedding and head "
            "are not both in it",
            cure="save it again with PEFT's save_embedding_layers=True",
        )
    if not (adapter.folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{adapter.folder}: its vocabulary of {size} tokens is another than the base's, and no tokenizer lies "
            "beside it",
            cure="save the tokenizer that it was trained with into its folder: tokenizer.save_pretrained(folder)",
        )
    return dataclasses.replace(adapter, vocabulary=size)


def _is_other_height(tensor: Tensor, place: Place | None) -> bool:
    """Whether a matrix has as many columns as the base's, and more or fewer rows."""
    if place is None or tensor.ndim != 2 or len(place.shape) != 2:
        return False
    return tensor.shape[1] == place.shape[1] and tensor.shape[0] != place.shape[0]


def _shape(adapter: Adapter, name: str, tensors: Mapping[str, Place]) -> tuple[int, ...] | None:
    """What the shape of a tensor has to be: the base's, or the new vocabulary's; None where the base has none."""
    if (
        adapter.vocabulary is not None
        and name in adapter.replaced
        and _is_other_height(adapter.replaced[name], tensors.get(name))
    ):
        return tuple(adapter.replaced[name].shape)
    return tensors[name].shape if name in tensors else None


def _whose(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    name, _ = named_base(config, record)
    return f"{folder} (an adapter of {name})" if name else str(folder)


def _check_fit(whose: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None, base: Path) -> None:
    cure = "give the base it was trained on"
    if wanted is None:
        raise ModelError(f"{whose}: it changes {name}, which {base} does not have as a weight of its own", cure=cure)
    if shape != wanted:
        raise ModelError(f"{whose}: {name} is {shape} in it and {wanted} in {base}", cure=cure)
