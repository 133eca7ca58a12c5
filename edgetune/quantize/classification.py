"""A classifier's weights on the grid, and the classifier that computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetune.errors import ModelError
from edgetune.model.base import load_merged
from edgetune.model.classifier import Classifier, float_copy, load_classifier
from edgetune.quantize.gptq import inverse_factor
from edgetune.quantize.grid import QuantizedMatrix, dequantize
from edgetune.quantize.hessian import input_hessians
from edgetune.quantize.methods import method_of, round_weight, without_rows
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import CALIBRATED, Method, Recipe
from edgetune.runtime.grid import Grid

LEAST_ROWS = 256
"""Embeddings with fewer rows stay float: two kinds of segment are not worth an operator."""


def quantize_classifier(
    classifier: Classifier, grid: Grid, batches: Sequence[tuple[Tensor, Tensor]] = (), *, method: Method = "gptq"
) -> dict[str, QuantizedMatrix]:
    """Each weight that the bundle holds on the grid, by its module's name, rounded by a method; not by "awq".

    These are the encoder's plain linear layers and its embeddings of LEAST_ROWS rows or more. `batches`: ids and mask,
    (B, T) each, of texts as the classifier will be given; with them "gptq" rounds linear layers so that their outputs
    change least, without them each weight to the nearest. Raises ModelError for "awq".
    """
    if method == "awq":
        raise ModelError('export.method = "awq": is for decoders', cure='take "gptq" for a classifier')
    copied = float_copy(classifier)
    linears = {
        name: module
        for name, module in copied.named_modules()
        if type(module) is nn.Linear and module is not copied.head
    }
    matrices: dict[str, QuantizedMatrix] = {}

    @torch.no_grad()
    def run() -> Iterator[Tensor]:
        for ids, mask in batches:
            yield mask.bool()
            copied(ids, mask)

    if batches and method in CALIBRATED:
        for name, hessian in input_hessians(linears, run):
            matrices[name] = round_weight(linears[name].weight, grid, method, inverse_factor(hessian))
    for name, module in copied.named_modules():
        is_table = type(module) is nn.Embedding and module.num_embeddings >= LEAST_ROWS
        if is_table or (name in linears and name not in matrices):
            matrices[name] = round_weight(module.weight, grid, method)
    return matrices


def dequantized(classifier: Classifier, matrices: Mapping[str, QuantizedMatrix]) -> Classifier:
    """A copy whose quantised weights are exactly the numbers that the bundle computes with; the rest is shared."""
    copied = float_copy(classifier)
    for name, matrix in matrices.items():
        copied.get_submodule(name).weight = nn.Parameter(dequantize(matrix), requires_grad=False)
    return copied


def as_deployed(merged: Path, recipe: Recipe) -> Classifier:
    """The merged folder on the grid of [export], each weight rounded by itself, ready to answer. Raises ModelError."""
    classifier, grid = load_classifier(load_merged(merged), merged), grid_of(recipe.export)
    if grid is None:
        return classifier
    return dequantized(classifier, quantize_classifier(classifier, grid, method=without_rows(method_of(recipe.export))))
