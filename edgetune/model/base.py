"""Bases: find the folder, refuse what is unsafe or broken, load tokenizer and model. First step of training.

Parts that are not quantised (embeddings, norms, head) are frozen and held in the compute type.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from edgetune.errors import EdgeTuneError, ModelError, OutOfMemoryError, first_line
from edgetune.model.config import AGAIN, read_config
from edgetune.model.device import compute_dtype
from edgetune.model.device import device as default_device
from edgetune.model.embedding import fill_ends, with_quantized_ends
from edgetune.model.encoder import KINDS as ENCODERS
from edgetune.model.gguf import is_gguf
from edgetune.model.heap import give_back_freed
from edgetune.model.hub import fetch
from edgetune.model.nf4 import hold_layout
from edgetune.model.quiet import load_bitsandbytes, quiet
from edgetune.model.task import TASKS, check_kind, task_of
from edgetune.model.weights import Place, find_tensors, hash_files
from edgetune.progress import Progress
from edgetune.recipe import ModelTable
from edgetune.task_names import TaskName as Task

NANO = "edgetune:nano"
OPTIONAL = ("pooler.",)
"""Weights that a base may lack: a pooler is made only where it is asked for."""


def resolve_base(
    base: str, revision: str | None = None, *, trust_remote_code: bool = False, progress: Progress | None = None
) -> Path:
    """The local folder of a base: `edgetune:nano`, a folder, a .gguf file (dequantised into EdgeTune's cache), or a hub
    id (fetched into the hub's own cache).

    Of a hub model only safetensors, JSON, tokenizer and template files are fetched; Python only if trusted.
    Raises ModelError if there is no such base or the hub cannot be reached.
    """
    if base == NANO:
        return Path(str(resources.files("edgetune.assets.nano")))
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        if is_gguf(folder):
            from edgetune.model.gguf_folder import gguf_folder

            return gguf_folder(folder, progress=progress)
        raise ModelError(f"{base}: is a file", cure="give the folder that holds the model's config.json")
    if is_gguf(folder):
        raise ModelError(f"{base}: no such file", cure="give the path of a .gguf file, a model folder, or a hub id")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", base) or base.startswith("edgetune:"):
        raise ModelError(f"{base}: no such folder", cure=f"give a model folder, a hub id like org/name, or {NANO}")
    return fetch(base, revision, trust_remote_code=trust_remote_code)


def base_folder(table: ModelTable, *, progress: Progress | None = None) -> Path:
    """The local folder of a recipe's base, as `resolve_base` finds it. Raises ModelError."""
    return resolve_base(table.base, table.revision, trust_remote_code=table.trust_remote_code, progress=progress)


def check_base(path: Path, *, trust_remote_code: bool = False, task: Task = "generation") -> dict[str, Any]:
    """config.json of a base that can be loaded safely: complete safetensors, of a known kind that is the task's, not
    quantised before.

    Reads headers only. Raises ModelError that says what is missing, broken, unsafe or unknown.
    """
    config = read_config(path)
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown")
        raise ModelError(
            f"{path}: is quantised already ({method})", cure="give the 16-bit original; EdgeTune quantises it itself"
        )
    if not (trust_remote_code and config.get("auto_map")):
        check_kind(path, config, task)
    find_tensors(path)
    return config


def tied_weights(model: Any) -> dict[str, str]:
    """Names of weights that a transformers model ties -> the one that holds for both."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def check_shapes(path: Path) -> None:
    """Raises ModelError if a base's files lack a weight that its config.json asks for, or have it in another shape."""
    model, places = empty_model(path), model_tensors(path)
    ties, prefix = tied_weights(model), f"{model.base_model_prefix}."
    missing = []
    for name, tensor in model.state_dict().items():
        place = next((places[n] for n in (name, name.removeprefix(prefix), f"{prefix}{name}") if n in places), None)
        if place is not None and place.shape != tuple(tensor.shape):
            raise ModelError(
                f"{path}: {name} is {place.shape} in its files, config.json asks for {tuple(tensor.shape)}", cure=AGAIN
            )
        if place is None and not (name in ties or name.startswith(OPTIONAL)):
            missing.append(name)
    if missing:
        raise _lacking(path, missing)


def _lacking(path: Path, missing: list[str]) -> ModelError:
    return ModelError(
        f"{path}: config.json asks for {len(missing)} weights that are not there, e.g. {missing[0]}", cure=AGAIN
    )


def hash_base(path: Path) -> str:
    """SHA-256 over the names and bytes of a base's safetensors files, hex; remembered within the process."""
    files = sorted({place.file for place in find_tensors(path).values()})
    return _hash_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a base's or merged model's folder. Raises ModelError if there is none or it is damaged.

    It knows how many tokens the model has vectors for, see `embedding_rows`.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
            found.embedding_rows = _vocab_size(Path(path))
            return found
    except Exception as error:  # transformers and the Rust tokenizer raise many kinds, bare Exception among them
        empty_model(path, trust_remote_code=trust_remote_code)  # raises where config.json, read first, is to blame
        raise ModelError(
            f"{path}: no tokenizer can be read: {first_line(error)}", cure="the folder needs tokenizer.json"
        ) from None


def _vocab_size(path: Path) -> int | None:
    """What config.json states; a model without one has transformers' own."""
    stated = read_config(path).get("vocab_size") if (path / "config.json").is_file() else None
    return stated if type(stated) is int else None


def embedding_rows(tokenizer: Any) -> int | None:
    """How many tokens the model beside a tokenizer has vectors for; None where that is not known.

    Tokenizers may know more: tokens that were added while the embedding was not resized.
    """
    rows = getattr(tokenizer, "embedding_rows", None)
    return rows if isinstance(rows, int) else None


def padding_id(tokenizer: Any) -> int:
    """The token that fills the shorter rows of a batch: the tokenizer's where the model has a vector for it, else 0."""
    found, rows = tokenizer.pad_token_id, embedding_rows(tokenizer)
    return 0 if found is None or (rows is not None and found >= rows) else int(found)


def load_base(table: ModelTable, *, device: torch.device | None = None) -> Any:
    """The base of a recipe as a transformers model in eval mode, all parameters frozen: a decoder with its head, or a
    bare encoder.

    quantization "nf4": every linear but the output head in bitsandbytes NF4 (64 weights a block); all else in the
    compute type. "none": everything in the compute type. embedding_quantization: see model/embedding.py. Raises
    ModelError, or OutOfMemoryError.
    """
    path = base_folder(table)
    check_base(path, trust_remote_code=table.trust_remote_code, task=table.task)
    device = device or default_device()
    dtype = compute_dtype(table.compute_dtype, device)
    options: dict[str, Any] = {}
    if table.quantization == "nf4":
        load_bitsandbytes()
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=table.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    kind = None
    if table.embedding_quantization != "none":
        plain = type(empty_model(path, trust_remote_code=table.trust_remote_code))
        kind = with_quantized_ends(plain, table.embedding_quantization, dtype)
    model = _load(path, dtype, device, kind=kind, trust_remote_code=table.trust_remote_code, **options)
    if kind:
        fill_ends(model, find_tensors(path))
    if table.quantization == "nf4":
        hold_layout(model)
        _let_go_of_file(model)
    return model


def load_merged(path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
    """A merged (or any plain) model folder as a transformers model in eval mode, all parameters frozen and in dtype."""
    check_base(path, task=_task_of(path))
    return _load(path, dtype, device or default_device(), trust_remote_code=False)


def is_encoder(path: Path) -> bool:
    """Whether a model folder holds an encoder that EdgeTune knows. Raises ModelError without a config.json."""
    return read_config(path).get("model_type") in ENCODERS


def model_tensors(path: Path) -> dict[str, Place]:
    """The tensors of a model folder by the names that the loaded model has for them. Raises ModelError.

    An encoder's file may be that of a model with a head: the prefix is taken off, tensors of the head are left out.
    """
    places = find_tensors(path)
    if not is_encoder(path):
        return places
    model = empty_model(path)
    prefix, wanted = f"{model.base_model_prefix}.", model.state_dict()
    named = {_modern(name.removeprefix(prefix)): place for name, place in places.items()}
    return {name: place for name, place in named.items() if name in wanted}


def _modern(name: str) -> str:
    """BERT's first checkpoints call the weight and bias of a norm gamma and beta."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]], name)


def empty_model(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The model of a folder's config.json on the meta device: modules and shapes, no weights. Raises ModelError."""
    from transformers import AutoConfig

    read_config(path)
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
            return _auto_class(path).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a config may be wrong in any way that its model's code trips over
        raise ModelError(f"{path / 'config.json'}: no model can be made from it: {first_line(error)}") from None


def _task_of(path: Path) -> Task:
    return task_of(read_config(path).get("model_type"))


def _auto_class(path: Path) -> Any:
    """transformers' class for a folder: the bare model of an encoder, a decoder with its head."""
    import transformers

    return getattr(transformers, TASKS[_task_of(path)].base.AUTO_CLASS)


def _load(
    path: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool, kind: Any = None, **options: Any
) -> Any:
    """The model of a folder, frozen, in eval mode; `kind` is its class, where that is not transformers' choice."""
    try:
        with quiet():
            model, info = (kind or _auto_class(path)).from_pretrained(
                path,
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(f"{path}: the base does not fit {device}", cure="choose a smaller base") from None
    except EdgeTuneError:
        raise
    except Exception as error:  # shapes against config.json, code of the architecture: many kinds
        raise ModelError(f"{path}: cannot be loaded: {first_line(error)}") from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(OPTIONAL))
    if missing:
        raise _lacking(path, missing)
    model.requires_grad_(False)
    return model.eval()


def _let_go_of_file(model: Any) -> None:
    """Copy the parameters that still lie in the mapped file, and give the heap of the conversion back to the system.

    One embedding that is a view of the file keeps the whole 16-bit base resident: 270 MB for 98 M parameters in NF4.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    give_back_freed()


@functools.lru_cache(maxsize=8)
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    return hash_files(file for file, _, _ in files)
