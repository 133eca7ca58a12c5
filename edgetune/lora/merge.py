"""Merge: adapter + base -> a plain Hugging Face folder, one tensor at a time.

In the flow: runs/x/adapter/ and the base's files -> runs/x/merged/, which export and evaluation read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from edgetune import __version__
from edgetune.errors import ModelError
from edgetune.files import atomic_folder, write_json
from edgetune.lora.held import Held, as_held, held_in_training
from edgetune.lora.peft_layers import PeftLayers
from edgetune.lora.read import CONFIG, RECORD, WEIGHTS, Adapter, named_base, read_adapter, read_record, refuse_tied
from edgetune.lora.task import TASKS, task_of
from edgetune.model.base import check_base, empty_model, hash_base, model_tensors, tied_weights
from edgetune.model.config import read_config
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.model.weights import INDEX, SINGLE, Place, Writer, hash_files, read_tensor
from edgetune.progress import Progress
from edgetune.run_dir import RunDir

MergeBase = Literal["trained", "original"]
SHARD_BYTES = 4 * 1024**3
FLOAT32_PARAMETERS = 2**29
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
OTHER_FILES = ("generation_config.json", "*.model")


@dataclass(frozen=True)
class MergeResult:
    """A finished merge: how many weights the adapter changed, and how many were put on the NF4 grid first."""

    path: Path
    merge_base: MergeBase
    dtype: str
    merged_tensors: int
    quantized_tensors: int
    size_bytes: int
    peak_bytes: int
    wall_s: float
    peft_difference: float | None = None
    """The largest difference between what PEFT's layers and the merged ones computed, of a layer's largest output."""


def merge_weight(base: Tensor, a: Tensor, b: Tensor, *, scaling: float, magnitude: Tensor | None = None) -> Tensor:
    """Fold one LoRA pair into its base weight: W + scaling * B @ A; with `magnitude`, rows rescaled to it (DoRA).

    base (out, in), a (r, in), b (out, r), magnitude (out,) -> (out, in) in base's dtype; summed in float32.
    Source: LoRA, arXiv:2106.09685, section 4.1; DoRA, arXiv:2402.09353, section 4. Raises ModelError for other shapes.
    """
    if b.shape[1] != a.shape[0] or base.shape != (b.shape[0], a.shape[1]):
        raise ModelError(f"B {tuple(b.shape)} @ A {tuple(a.shape)} does not fit a weight {tuple(base.shape)}")
    merged = torch.addmm(base.float(), b.float(), a.float(), alpha=scaling)
    if magnitude is not None:
        merged *= (magnitude.float() / merged.norm(dim=1)).unsqueeze(1)
    return merged.to(base.dtype)


def merged_dtype(parameters: int) -> torch.dtype:
    """The type a merge is written in: float32 up to 2**29 parameters (2 GiB on disk), bfloat16 above.

    bfloat16 moves a weight by up to 1/256 of itself, which shows in float32 bundles of small models; an int4 grid
    has steps some thirty times larger.
    """
    return torch.float32 if parameters <= FLOAT32_PARAMETERS else torch.bfloat16


def is_merged(path: Path) -> bool:
    """Whether a folder is one that `merge` wrote, by its record or, if that is damaged, by its place in a run."""
    if RunDir(path.parent).is_run and path.name == "merged":
        return True
    try:
        return read_record(path).get("kind") == "merged"
    except ModelError:
        return False


def merge(
    adapter: Path,
    base: Path,
    out: Path,
    *,
    merge_base: MergeBase = "trained",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write `out`, a Hugging Face folder with the adapter folded into its base (a folder), replacing what is there.

    "trained" puts each weight in the type it had in training, and the linears that training held in NF4, embedding and
    head that it held in 8 or 4 bits, on those same grids, as the adapter's edgetune.json says (without one: NF4, double
    quantisation, bfloat16). dtype: see
    `merged_dtype`. Memory: a few times the largest tensor. Raises ModelError for an adapter of another base or a base
    that is itself a merge, RunError for a full disk.
    """
    started = time.monotonic()
    reset_peak()
    check_base(base, task=task_of(base))
    read = read_adapter(adapter, base)
    peft = PeftLayers(read, base)
    dtype, held = _write_model(read, base, out, merge_base=merge_base, dtype=dtype, progress=progress, peft=peft)
    return MergeResult(
        path=out,
        merge_base=merge_base,
        dtype=_name(dtype),
        merged_tensors=len(read.pairs) + len(read.replaced),
        quantized_tensors=len(held.quantized),
        size_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        peak_bytes=peak_memory_bytes(),
        wall_s=time.monotonic() - started,
        peft_difference=peft.largest,
    )


def write_base(
    adapter: Adapter, base: Path, out: Path, *, merge_base: MergeBase = "trained", progress: Progress | None = None
) -> None:
    """Write `out`: the base alone, as a Hugging Face folder, in the numbers that `merge` would add the adapter to.

    How the base was held is read from the adapter's record. Raises as `merge` does.
    """
    check_base(base)
    alone = dataclasses.replace(adapter, pairs={}, replaced={}, vocabulary=None)
    _write_model(alone, base, out, merge_base=merge_base, dtype=None, progress=progress)


def _write_model(
    read: Adapter,
    base: Path,
    out: Path,
    *,
    merge_base: MergeBase,
    dtype: torch.dtype | None,
    progress: Progress | None,
    peft: PeftLayers | None = None,
) -> tuple[torch.dtype, Held]:
    """Write the folder, each fold compared with `peft`; the type it is in, and how the base was held."""
    _refuse_second_merge(read, base)
    model = empty_model(base)
    places = _untied(read, model, model_tensors(base))
    dtype = dtype or merged_dtype(sum(torch.Size(place.shape).numel() for place in places.values()))
    held = held_in_training(read, model) if merge_base == "trained" else Held(None)
    with atomic_folder(out) as temporary:
        _write_weights(temporary, read, places, dtype=dtype, held=held, progress=progress, peft=peft)
        _copy_files(base, read.folder, temporary)
        config = read_config(base) | ({} if read.vocabulary is None else {"vocab_size": read.vocabulary})
        (temporary / "config.json").write_text(_config_json(config, dtype), encoding="utf-8")
        write_json(temporary / RECORD, _record(read, base, merge_base, dtype))
    return dtype, held


class BaseTensors(Mapping[str, Tensor]):
    """Each tensor of a base as a merge takes it, before the adapter is folded in; read when it is asked for."""

    def __init__(self, adapter: Path, base: Path, merge_base: MergeBase) -> None:
        """Raises ModelError for an adapter of another base."""
        read, is_trained = read_adapter(adapter, base), merge_base == "trained"
        self._places = model_tensors(base)
        self._held = held_in_training(read, empty_model(base)) if is_trained else Held(None)

    def __getitem__(self, name: str) -> Tensor:
        return as_held(name, read_tensor(self._places[name]), self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _write_weights(
    folder: Path,
    adapter: Adapter,
    places: Mapping[str, Place],
    *,
    dtype: torch.dtype,
    held: Held,
    progress: Progress | None,
    peft: PeftLayers | None,
) -> None:
    places = {name: _resized(place, adapter.replaced.get(name)) for name, place in places.items()}
    shards = _shards(places, dtype)
    file_of = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        announced = {name: (_out_dtype(places[name], dtype), places[name].shape) for name in names}
        with Writer(folder / file, announced) as writer:
            for name in names:
                writer.write(_fold(name, places[name], adapter, held, peft).to(announced[name][0]))
                file_of[name] = file
                if progress:
                    progress({"stage": "merge", "step": len(file_of), "steps": len(places)})
    if len(shards) > 1:
        total = sum((folder / file).stat().st_size for file in set(file_of.values()))
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def _resized(place: Place, replaced: Tensor | None) -> Place:
    """The place of a tensor with the shape that it will have."""
    return place if replaced is None else dataclasses.replace(place, shape=tuple(replaced.shape))


def _fold(name: str, place: Place, adapter: Adapter, held: Held, peft: PeftLayers | None) -> Tensor:
    """One tensor of the merged model: float32 where the adapter changes it, else in the type it was held in."""
    pair, replaced = adapter.pairs.get(name), adapter.replaced.get(name)
    if replaced is not None and pair is None:
        return replaced
    weight = as_held(name, read_tensor(place) if replaced is None else replaced, held)
    if pair is None:
        return weight
    merged = merge_weight(weight.float(), pair.a, pair.b, scaling=pair.scaling, magnitude=pair.magnitude)
    if peft is not None:
        peft.compare(name, weight, merged)
    return merged


def _shards(places: Mapping[str, Place], dtype: torch.dtype) -> list[list[str]]:
    """Names in shards of at most SHARD_BYTES, or of one tensor."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, place in places.items():
        size = torch.Size(place.shape).numel() * _out_dtype(place, dtype).itemsize
        if shards[-1] and used + size > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _out_dtype(place: Place, dtype: torch.dtype) -> torch.dtype:
    return dtype if place.dtype.is_floating_point else place.dtype


def _refuse_second_merge(adapter: Adapter, base: Path) -> None:
    """A merged folder is a base only for an adapter that was trained on exactly that folder."""
    if read_record(base).get("kind") == "merged" and adapter.record.get("base_sha256") != hash_base(base):
        raise ModelError(
            f"{base}: is a merged model already; merging again would add an adapter twice",
            cure="give the base that the adapter was trained on",
        )


def _untied(adapter: Adapter, model: Any, places: Mapping[str, Place]) -> dict[str, Place]:
    """The tensors to write: of weights that the model ties, only the one that holds for all.

    Raises ModelError if the adapter trained a tied weight: the two would have to differ afterwards.
    """
    refuse_tied(adapter, model)
    ties = tied_weights(model)
    return {name: place for name, place in places.items() if ties.get(name) not in places}


def _copy_files(base: Path, adapter: Path, out: Path) -> None:
    """Tokenizer, generation settings, a head of the adapter's own; what is beside the adapter is what training used.

    Beside it may be a whole tokenizer, or a chat template alone, which stands in for the base's.
    """
    tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
    wanted = [(tokenizer, pattern) for pattern in TOKENIZER_FILES] + [(base, pattern) for pattern in OTHER_FILES]
    wanted += [(adapter, TEMPLATE_FILE)]
    wanted += [(adapter, name) for task in TASKS.values() for name in task.FILES]
    for folder, pattern in wanted:
        for file in folder.glob(pattern):
            if file.is_file() and file.suffix != ".py":
                shutil.copyfile(file, out / file.name)


def _config_json(config: Mapping[str, Any], dtype: torch.dtype) -> str:
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    return json.dumps({**kept, "dtype": _name(dtype)}, indent=2) + "\n"


def _record(adapter: Adapter, base: Path, merge_base: MergeBase, dtype: torch.dtype) -> dict[str, Any]:
    """edgetune.json of a merged folder: the marker that refuses a second merge, and where the weights come from."""
    return {
        "kind": "merged",
        "edgetune": __version__,
        "base": named_base(adapter.config, adapter.record)[0],
        "base_sha256": hash_base(base),
        "adapter_sha256": hash_files([adapter.folder / WEIGHTS, adapter.folder / CONFIG]),
        "merge_base": merge_base,
        "dtype": _name(dtype),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
