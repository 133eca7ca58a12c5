"""What the merged model says of the eval rows, against whole logits of transformers."""

from __future__ import annotations

import pytest
import torch

from edgetune.data.encode import NOT_TRAINED
from edgetune.data.prepare import prepare
from edgetune.model.base import load_merged, load_tokenizer
from edgetune.quantize import truth as module
from edgetune.quantize.truth import EvalRows, Truth
from edgetune.recipe import DataTable, ModelTable, Recipe, TrainTable
from edgetune.train.loss import use_segments


@pytest.fixture(scope="module")
def model(tiny_base):
    found = load_merged(tiny_base)
    use_segments(found)
    return found


@pytest.fixture(scope="module")
def rows(tiny_base, tiny_rows, tmp_path_factory) -> EvalRows:
    recipe = Recipe(
        model=ModelTable(base=str(tiny_base)),
        data=DataTable(train=str(tiny_rows), max_seq_len=128, eval_fraction=0.2),
        train=TrainTable(batch_size=4),
    )
    tokenizer = load_tokenizer(tiny_base)
    return EvalRows.of(prepare(recipe, tokenizer, cache=tmp_path_factory.mktemp("cache")), recipe, 0)


def expected(model, rows: EvalRows) -> torch.Tensor:
    """Log-probabilities at the trained positions of all rows, one row at a time, with eager attention."""
    model.config._attn_implementation = "eager"
    parts = []
    for index in range(len(rows.tokens)):
        row = rows.tokens[index]
        wanted = torch.tensor(row.labels)[1:] != NOT_TRAINED
        with torch.no_grad():
            parts.append(model(input_ids=torch.tensor([row.input_ids])).logits[0][:-1][wanted].log_softmax(-1))
    use_segments(model)
    return torch.cat(parts)


def test_it_has_each_trained_token_once(model, rows):
    """As a set: rows are packed longest first."""
    found, wanted = Truth.measure(model, rows).found, expected(model, rows)
    assert found.shape == wanted.shape
    nearest = torch.cdist(found.double(), wanted.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert float(nearest.max()) < 1e-3


def test_the_divergence_is_that_of_the_distributions(model, rows, tiny_base):
    truth = Truth.measure(model, rows)
    assert truth.divergence(model) == 0.0
    other = load_merged(tiny_base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    use_segments(other)
    mine, its = expected(model, rows), expected(other, rows)
    assert truth.divergence(other) == pytest.approx(float((mine.exp() * (mine - its)).sum(-1).mean()), rel=1e-3)


def test_it_holds_no_more_than_it_may(model, rows, monkeypatch):
    """A bound of 10 tokens, which ends within a part: the divergence is that of the first 10."""
    whole = Truth.measure(model, rows)
    monkeypatch.setattr(module, "MOST_TOKENS", 10)
    short = Truth.measure(model, rows)
    assert short.found.equal(whole.found[:10])
    assert short.loss == whole.loss
    assert short.divergence(model) == 0.0
    monkeypatch.setattr(module, "MOST_VALUES", 3 * whole.found.shape[1])
    assert len(Truth.measure(model, rows).found) == 3
