"""Adapters on a live model: attach a new one, go on from an old one, save, load. PEFT's own format throughout.

In the flow: loaded base -> PeftModel -> training -> runs/x/adapter/. edgetune.json beside the weights says which base
(by content) and which quantisation the adapter was trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from edgetune import __version__
from edgetune.errors import ModelError, first_line
from edgetune.files import atomic_folder, write_json
from edgetune.lora.read import AGAIN, RECORD, Adapter, read_adapter, refuse_tied
from edgetune.lora.task import TASKS
from edgetune.model.base import ENCODERS, base_folder, empty_model, hash_base, tied_weights
from edgetune.model.device import compute_dtype
from edgetune.model.embedding import end_modules
from edgetune.model.memory import is_target
from edgetune.model.quiet import load_bitsandbytes, quiet
from edgetune.recipe import LoraTable, ModelTable, Recipe


def attach(model: Any, table: LoraTable, *, gradient_checkpointing: bool = False, will_drop: bool = False) -> Any:
    """The base with a trainable adapter, a PeftModel: new by r, alpha and targets, or the one in `init_from`.

    Adapter weights are float32, all else is frozen; A is drawn from torch's generator, B is zero. With
    `train_embeddings` embedding and output head are trained whole, in float32, as one where they are tied. `will_drop`:
    dropout may come while it trains, so checkpointing has to draw again what was drawn.
    Raises ModelError if no linear fits target_modules, the adapter in init_from belongs to another base, or an adapter
    would change an embedding or head that is quantised.
    """
    if table.init_from is not None:
        model = _load(model, Path(table.init_from).expanduser(), is_trainable=True)
    else:
        model = _attach_new(model, table)
    if gradient_checkpointing:
        with quiet():
            how = {"use_reentrant": False, "preserve_rng_state": will_drop or _draws(model)}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    return model


def save(model: Any, folder: Path, table: ModelTable, *, beside: Callable[[Path], object] | None = None) -> None:
    """Write the adapter (float32) in PEFT's format and edgetune.json, all or nothing. `table` is the recipe's [model].

    `beside` writes what else belongs into the folder. Raises RunError if the folder cannot be written.
    """
    path = base_folder(table)
    record = {
        "kind": "adapter",
        "edgetune": __version__,
        "base": table.base,
        "revision": table.revision,
        "base_sha256": hash_base(path),
        "quantization": table.quantization,
        "double_quantization": table.double_quantization,
        "embedding_quantization": table.embedding_quantization,
        "compute_dtype": str(compute_dtype(table.compute_dtype, model.device)).removeprefix("torch."),
    }
    for config in model.peft_config.values():
        config.base_model_name_or_path = table.base
        config.revision = table.revision
    with atomic_folder(folder) as temporary, quiet():
        model.create_or_update_model_card = _write_no_card
        model.save_pretrained(str(temporary), safe_serialization=True, save_embedding_layers=False)
        write_json(temporary / RECORD, record)
        if beside is not None:
            beside(temporary)


def _write_no_card(_: str) -> None:
    """PEFT's card is a form with nothing filled in, and takes longer to make than a small adapter to save."""


def load(model: Any, folder: Path) -> Any:
    """The base with a saved adapter, frozen and in eval mode. Raises ModelError if it belongs to another base."""
    model = _load(model, folder, is_trainable=False)
    model.requires_grad_(False)
    return model.eval()


def check_adapter(folder: Path, base: Path, table: ModelTable | None = None) -> None:
    """Raises ModelError unless the adapter is a LoRA whose every tensor fits the base in folder `base`, and can be
    merged into it; with a recipe's [model], unless it can be trained on as that holds the base.
    """
    adapter = read_adapter(folder, base)
    refuse_resized(adapter)
    model = empty_model(base, trust_remote_code=table is not None and table.trust_remote_code)
    refuse_tied(adapter, model)
    if table is not None and table.embedding_quantization != "none":
        _refuse_frozen(_changed_ends(model, adapter), str(folder))


def refuse_resized(adapter: Adapter) -> None:
    """Raises ModelError for an adapter with a vocabulary of its own, which no base can take on as it is."""
    if adapter.vocabulary is not None:
        raise ModelError(
            f"{adapter.folder}: its vocabulary of {adapter.vocabulary} tokens is another than the base's",
            cure="merge it first, `edgetune merge`, and give the merged folder as model.base",
        )


def check_targets(base: Path, recipe: Recipe) -> list[str]:
    """Names in [lora] target_modules that no part of the base has, a line; [] where there are none.

    Raises ModelError if no name is a part's, or a part is none that a LoRA can be merged into.
    """
    table = recipe.lora
    if isinstance(table.target_modules, str) or table.init_from is not None:
        return []
    model = empty_model(base, trust_remote_code=recipe.model.trust_remote_code)
    TASKS[recipe.model.task].drop_unused(model, recipe)
    matched = _matched(model, table.target_modules)
    if table.use_dora and any(isinstance(part, torch.nn.Embedding) for part in matched.values()):
        raise ModelError(
            "lora.target_modules: DoRA of an embedding cannot be merged",
            cure="leave out the embedding, or lora.use_dora",
        )
    if recipe.model.embedding_quantization != "none":
        _refuse_frozen([name for name in end_modules(model) if name in matched], "lora.target_modules")
    unknown = [target for target in table.target_modules if not any(is_target(name, (target,)) for name in matched)]
    told = f"no part of the base is called {', '.join(unknown)}; the base's linears: {', '.join(_linear_names(model))}"
    return [f"lora.target_modules: {told}"] if unknown else []


def _matched(model: Any, targets: Iterable[str]) -> dict[str, Any]:
    """The parts of a model that target_modules name, by path. Raises ModelError unless each can be merged into."""
    parts = {name: part for name, part in model.named_modules() if name and is_target(name, targets)}
    cure = f"the base's linears: {', '.join(_linear_names(model))}"
    if not parts:
        wanted = ", ".join(targets) or "an empty list"
        raise ModelError(f"lora.target_modules: {wanted}: no part of the base is called so", cure=cure)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Embedding) and model.config.model_type in ENCODERS:
            raise ModelError(f"lora.target_modules: {name} is an embedding, not a linear", cure="leave it out")
        if not isinstance(part, torch.nn.Linear | torch.nn.Embedding):
            raise ModelError(f"lora.target_modules: {name} is a {type(part).__name__}, not a linear", cure=cure)
    ties = tied_weights(model)
    for name in parts:
        if f"{name}.weight" in {*ties, *ties.values()}:
            raise ModelError(
                f"lora.target_modules: {name} is one end of a tie, embedding and head, that would have to differ",
                cure="leave it out; lora.train_embeddings = true trains both as one",
            )
    return parts


def _linear_names(model: Any) -> list[str]:
    """Last words of the names of a model's linears, sorted."""
    return sorted({name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)})


def _changed_ends(model: Any, adapter: Adapter) -> list[str]:
    """Embedding and output head, by path, as far as an adapter changes them."""
    changed = {name.removesuffix(".weight") for name in (*adapter.pairs, *adapter.replaced)}
    return [name for name in end_modules(model) if name in changed]


def _draws(model: Any) -> bool:
    """Whether a layer draws random numbers while it trains, which its recomputation must draw again."""
    shares = (part.p if isinstance(part, torch.nn.Dropout) else _attention_dropout(part) for part in model.modules())
    return any(shares)


def _attention_dropout(module: torch.nn.Module) -> float:
    share = getattr(module, "attention_dropout", 0.0)
    return share if isinstance(share, float) else 0.0


def _attach_new(model: Any, table: LoraTable) -> Any:
    targets = table.target_modules
    if table.train_embeddings:
        _refuse_quantized_ends(model, end_modules(model), "lora.train_embeddings")
    if not isinstance(targets, str):
        wanted = [name for name in end_modules(model) if any(f".{name}".endswith(f".{item}") for item in targets)]
        _refuse_quantized_ends(model, wanted, "lora.target_modules")
        _matched(model, targets)
    with quiet():
        load_bitsandbytes()
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION if model.config.model_type in ENCODERS else TaskType.CAUSAL_LM,
            r=table.r,
            lora_alpha=table.alpha,  # type: ignore[arg-type]
            lora_dropout=table.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=table.use_rslora,
            use_dora=table.use_dora,
            modules_to_save=_embedding_names(model) if table.train_embeddings else None,
            ensure_weight_tying=table.train_embeddings and is_tied(model),
        )
        try:
            return _in_float32(get_peft_model(model, config))
        except ValueError as error:  # no module has such a name, or it is not a linear
            cure = f"the base's linears: {', '.join(_linear_names(model))}"
            raise ModelError(f"lora.target_modules: {first_line(error)}", cure=cure) from None


def _load(model: Any, folder: Path, *, is_trainable: bool) -> Any:
    adapter = read_adapter(folder, Path(model.config._name_or_path))
    refuse_resized(adapter)
    if is_trainable:
        refuse_tied(adapter, model)
    _refuse_quantized_ends(model, _changed_ends(model, adapter), str(folder))
    with quiet(), warnings.catch_warnings():
        load_bitsandbytes()
        from peft import PeftModel

        warnings.simplefilter("ignore")  # of keys that other PEFT versions write and read
        try:
            loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # PEFT trips over whatever a config says wrong
            raise ModelError(f"{folder}: PEFT cannot load it: {first_line(error)}", cure=AGAIN) from None
    _in_float32(loaded)
    for name, part in _trained_whole(loaded).items():
        if f"{name}.weight" in adapter.replaced:  # once more: PEFT has cut it to the type of the base
            part.weight.data.copy_(adapter.replaced[f"{name}.weight"])
    return loaded


def _refuse_quantized_ends(model: Any, names: Iterable[str], who: str) -> None:
    """Raises ModelError if `who` is to change an embedding or head, by its path, whose vectors are quantised."""
    _refuse_frozen((name for name in names if hasattr(model.get_submodule(name), "vectors")), who)


def _refuse_frozen(names: Iterable[str], who: str) -> None:
    for name in names:
        raise ModelError(
            f"{who}: changes {name}, which model.embedding_quantization freezes", cure="leave one of the two out"
        )


def is_tied(model: Any) -> bool:
    """Whether embedding and output head are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _embedding_names(model: Any) -> list[str]:
    """Ends of the paths of embedding and, where it is a tensor of its own, output head."""
    wanted = [model.get_input_embeddings()]
    if not is_tied(model):
        wanted.append(model.get_output_embeddings())
    return [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is one for one in wanted)]


def _in_float32(model: Any) -> Any:
    """Modules that are trained whole, in the adapter's type; tied ones stay one tensor."""
    seen: dict[int, torch.nn.Parameter] = {}
    for part in _trained_whole(model).values():
        old = part.weight
        new = seen.setdefault(id(old), torch.nn.Parameter(old.detach().float(), requires_grad=old.requires_grad))
        part.weight = new
    return model


def _trained_whole(model: Any) -> dict[str, Any]:
    """Modules that PEFT trains a copy of: path in the base -> the copy."""
    found = {}
    for name, module in model.get_base_model().named_modules():
        copies = getattr(module, "modules_to_save", None)
        if isinstance(copies, torch.nn.ModuleDict) and model.active_adapter in copies:
            found[name] = copies[model.active_adapter]
    return found
