"""quantize/classification.py: a classifier's weights on the grid."""

from __future__ import annotations

import pytest
import torch

from edgetune.bundle.classification import token_batches
from edgetune.errors import ModelError
from edgetune.export.read_graph import same_bytes
from edgetune.model.classifier import float_copy
from edgetune.quantize.classification import dequantized, quantize_classifier
from edgetune.quantize.methods import ROUNDERS, round_weight
from edgetune.recipe import CALIBRATED
from edgetune.runtime.grid import BundleGrid

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)


def test_dequantized_weights_are_the_numbers_of_the_grid_and_all_else_is_shared(a_classifier) -> None:
    classifier = a_classifier("bert")
    found = dequantized(classifier, quantize_classifier(classifier, GRID))
    layer, original = found.encoder.encoder.layer[0].output, classifier.encoder.encoder.layer[0].output
    assert len(layer.dense.weight[0, :32].unique()) <= 16
    assert not torch.equal(layer.dense.weight, original.dense.weight)
    assert layer.dense.bias.data_ptr() == original.dense.bias.data_ptr()
    assert torch.equal(found.head.weight, classifier.head.weight)


def test_calibrated_weights_change_what_the_encoder_computes_less(a_classifier, encoder_tokenizer, texts) -> None:
    classifier, tokenizer = a_classifier("bert"), encoder_tokenizer("bert")
    (ids, mask), *_ = token_batches(tokenizer, texts[:8], max_length=40)
    batches = token_batches(tokenizer, texts, max_length=40)
    with torch.no_grad():
        wanted = float_copy(classifier).embed(ids, mask)
        plain, calibrated = (
            dequantized(classifier, quantize_classifier(classifier, GRID, rows)).embed(ids, mask)
            for rows in ((), batches)
        )
    assert (calibrated - wanted).square().mean() < 0.8 * (plain - wanted).square().mean()


@pytest.mark.parametrize("method", ["rtn", "search", "hqq", "gptq"])
def test_a_method_decides_how_the_encoder_s_layers_are_rounded(method, a_classifier, encoder_tokenizer, texts) -> None:
    batches = token_batches(encoder_tokenizer("bert"), texts[:8], max_length=40)
    classifier = a_classifier("bert")
    name = "encoder.encoder.layer.0.output.dense"
    found = quantize_classifier(classifier, GRID, batches, method=method)[name]
    weight = classifier.get_submodule(name).weight
    plain = {other: round_weight(weight, GRID, other) for other in ROUNDERS if other not in CALIBRATED}
    same = {other for other, matrix in plain.items() if same_bytes(matrix, found)}
    assert same == ({method} if method in plain else set())


def test_channels_of_a_classifier_are_not_scaled(a_classifier) -> None:
    with pytest.raises(ModelError, match='"awq": is for decoders; take "gptq" for a classifier'):
        quantize_classifier(a_classifier("bert"), GRID, method="awq")
