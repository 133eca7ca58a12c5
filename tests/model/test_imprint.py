"""model/classifier.py: where a cosine head starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgetune.model.classifier import Classifier, ClassifierSpec, imprint


@pytest.fixture
def classifier() -> Classifier:
    """A cosine head of three labels over vectors of two numbers, without an encoder."""
    torch.manual_seed(0)
    encoder = nn.Module()
    encoder.config, encoder.device = SimpleNamespace(hidden_size=2), torch.device("cpu")
    return Classifier(encoder, ClassifierSpec(("a", "b", "c"), "mean", "cosine", 20.0, False, 8))


def test_a_label_starts_at_the_mean_direction_of_its_texts(classifier: Classifier) -> None:
    batches = [
        (torch.tensor([[9.0, 0.0], [0.0, -2.0]]), torch.tensor([0, 1])),
        (torch.tensor([[0.0, 1.0]]), torch.tensor([0])),
    ]
    imprint(classifier, batches)
    assert torch.allclose(classifier.head.weight[:2], torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_a_label_without_a_text_keeps_its_draw(classifier: Classifier) -> None:
    drawn = classifier.head.weight.detach().clone()
    imprint(classifier, [(torch.ones(1, 2), torch.tensor([1]))])
    assert torch.equal(classifier.head.weight[[0, 2]], drawn[[0, 2]])
    assert not torch.equal(classifier.head.weight[1], drawn[1])


def test_texts_at_their_label_s_direction_have_the_highest_logit_there_is(classifier: Classifier) -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    imprint(classifier, [(vectors, torch.arange(3))])
    logits = classifier.classify(vectors)
    assert logits.argmax(1).tolist() == [0, 1, 2]
    assert torch.allclose(logits.diagonal(), torch.full((3,), 20.0))
