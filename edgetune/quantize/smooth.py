"""AWQ on a merged decoder: scales of its layers' inputs, folded into what makes them; the same model in float.

An input that comes from a norm is scaled in the norm's weight; that of down_proj in the rows of up_proj, which gate and
activation only multiply; that of o_proj in the rows of v_proj, which attention only mixes. Heads of o_proj that read
one head of v_proj have its scales.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgetune.files import atomic_folder
from edgetune.model.config import read_config
from edgetune.model.weights import INDEX, SINGLE, Place, Writer, find_tensors, read_tensor
from edgetune.quantize.awq import channel_scales, for_columns
from edgetune.quantize.hessian import Rows, layer_hessians
from edgetune.recipe import Recipe
from edgetune.runtime.grid import Grid


@dataclass(frozen=True)
class Group:
    """Matrices that read one input, and the tensor that makes it: a norm's vector, or rows of a matrix."""

    readers: tuple[str, ...]
    maker: str
    start: int
    """The maker's first row, or element, that makes the input."""
    heads: tuple[int, int]
    """As in quantize.awq.channel_scales."""


def smooth_decoder(merged: Path, out: Path, recipe: Recipe, grid: Grid, rows: Rows, *, names: Container[str]) -> None:
    """Write `out`: the merged folder with its layers' inputs scaled for the grid, changed tensors in float32.

    `names`: the matrices that will be on that grid; others are not scaled. Memory: one layer, and the Hessians of some.
    Disk: the model in float32. Raises RunError for a full disk.
    """
    groups = {group.readers[0]: group for group in find_groups(merged) if group.readers[0] in names}
    places = find_tensors(merged)
    scales = []
    for name, hessian in layer_hessians(merged, groups, recipe, rows):
        weights = [read_tensor(places[reader]) for reader in groups[name].readers]
        scales.append((groups[name], channel_scales(weights, grid, hessian, groups[name].heads)))
    write_smoothed(merged, out, scales)


def find_groups(merged: Path) -> Iterator[Group]:
    """What can be scaled in a merged decoder, layer by layer."""
    places, config = find_tensors(merged), read_config(merged)
    width = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    for layer in sorted({match[0] for name in places if (match := re.match(r"model\.layers\.\d+\.", name))}):
        yield from _groups_of(layer, places, width)


def _groups_of(layer: str, places: Mapping[str, Place], width: int) -> Iterator[Group]:
    """The groups of one layer, `layer` with a dot at its end; `width` of an attention head."""
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    hidden = places[f"{attention}o_proj.weight"].shape[0]
    before_mlp = f"{layer}pre_feedforward_layernorm.weight"
    if before_mlp not in places:
        before_mlp = f"{layer}post_attention_layernorm.weight"
    query = _there(attention, ("qkv_proj", "q_proj", "k_proj", "v_proj"), places)
    gate = _there(mlp, ("gate_up_proj", "gate_proj", "up_proj"), places)
    yield Group(query, f"{layer}input_layernorm.weight", 0, (1, hidden))
    yield Group(gate, before_mlp, 0, (1, hidden))
    mixed = places[f"{attention}o_proj.weight"].shape[1]
    values = (places[query[-1]].shape[0] - mixed) // 2 if len(query) == 1 else places[query[-1]].shape[0]
    start = mixed + values if len(query) == 1 else 0
    yield Group((f"{attention}o_proj.weight",), query[-1], start, (mixed // values, width))
    inner = places[f"{mlp}down_proj.weight"].shape[1]
    start = inner if len(gate) == 1 else 0
    yield Group((f"{mlp}down_proj.weight",), gate[-1], start, (1, inner))


def _there(block: str, names: Sequence[str], places: Container[str]) -> tuple[str, ...]:
    """Of the matrices of a block those that the checkpoint has."""
    return tuple(name for name in (f"{block}{name}.weight" for name in names) if name in places)


def write_smoothed(merged: Path, out: Path, scales: Sequence[tuple[Group, Tensor]]) -> None:
    """Write `out`: the merged folder with each group's readers multiplied and its maker divided by scales (channels,).

    In float both compute the same. Raises RunError for a full disk.
    """
    places = find_tensors(merged)
    # Gemma's norms multiply by 1 + weight.
    offset = 1.0 if str(read_config(merged).get("model_type", "")).startswith("gemma") else 0.0
    readers = {name: for_columns(found, group.heads) for group, found in scales for name in group.readers}
    makers = {group.maker: (group.start, found) for group, found in scales}
    makers |= {name.removesuffix("weight") + "bias": made for name, made in makers.items()}

    def smoothed(name: str) -> Tensor:
        tensor = read_tensor(places[name])
        if name in readers:
            tensor = tensor.float() * readers[name]
        if name in makers:
            start, found = makers[name]
            added = offset if name.endswith("norm.weight") else 0.0
            tensor = tensor.float() + added
            rows = tensor[start : start + len(found)]
            rows /= found.view(-1, *[1] * (tensor.dim() - 1))
            tensor -= added
        return tensor

    changed = {**readers, **makers}
    announced = {
        name: (torch.float32 if name in changed else place.dtype, place.shape) for name, place in places.items()
    }
    with atomic_folder(out) as temporary:
        for file in merged.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != INDEX:
                shutil.copy(file, temporary)
        with Writer(temporary / SINGLE, announced) as writer:
            for name in announced:
                writer.write(smoothed(name))
