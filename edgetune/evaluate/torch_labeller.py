"""A torch classifier as a Labeller: the base with its adapter as it was trained, or the merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.lora import adapter
from edgetune.model import base
from edgetune.model.classifier import Classifier, drop_unused_pooler, load_classifier, read_spec
from edgetune.model.device import autocast, compute_dtype, device
from edgetune.recipe import ModelTable
from edgetune.runtime.batches import by_length, padded

BATCH_TEXTS = 32


def load(request: Mapping[str, Any]) -> TorchLabeller:
    """The torch target of a request (see child.py). Raises ModelError."""
    table, folder = ModelTable(**request["model"]), Path(request["path"])
    if request["kind"] == "merged":
        on = device()
        encoder = base.load_merged(Path(table.base), dtype=compute_dtype(table.compute_dtype, on), device=on)
    else:
        encoder = base.load_base(table)
    drop_unused_pooler(encoder, read_spec(folder).pooling)  # before the adapter: it has no weights for it
    if request["kind"] == "tuned":
        encoder = adapter.load(encoder, folder)
    classifier = load_classifier(encoder, folder)
    return TorchLabeller(classifier, base.load_tokenizer(Path(table.base), trust_remote_code=table.trust_remote_code))


class TorchLabeller:
    """A classifier with its tokenizer."""

    def __init__(self, classifier: Classifier, tokenizer: Any) -> None:
        self.classifier, self.tokenizer = classifier, tokenizer

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels) float32; batches of texts of like length."""
        limit = self.classifier.spec.max_length
        ids = self.tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]
        found = np.empty((len(ids), len(self.classifier.spec.labels)), np.float32)
        for rows in by_length(map(len, ids), most_rows=BATCH_TEXTS):
            found[rows] = self._run([ids[row] for row in rows])
        return found

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, special ones included, cut at the longest that the model takes."""
        limit = self.classifier.spec.max_length
        return len(self.tokenizer(text, truncation=True, max_length=limit, verbose=False)["input_ids"])

    def _run(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        on = self.classifier.device
        tokens, mask = (torch.from_numpy(part).to(on) for part in padded(ids, pad_id=base.padding_id(self.tokenizer)))
        with autocast(self.classifier):
            return np.asarray(self.classifier(tokens, mask).float().cpu().numpy())
