"""A torch classifier as a Labeller: the base with its adapter as it was trained, or the merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.evaluate.torch_target import load_model
from edgetune.lora import adapter
from edgetune.model import base
from edgetune.model.classifier import Classifier, drop_unused_pooler, load_classifier, read_spec
from edgetune.model.device import autocast
from edgetune.model.inference import in_memory
from edgetune.runtime.batches import by_length, padded

BATCH_TEXTS = 32


def load(request: Mapping[str, Any]) -> TorchLabeller:
    """The torch target of a request (see child.py). Raises ModelError."""
    folder = Path(request["path"])
    encoder, place = load_model(request)
    drop_unused_pooler(encoder, read_spec(folder).pooling)  # before the adapter: it has no weights for it
    if request["kind"] == "tuned":
        encoder = adapter.load(encoder, folder)
    table = place.table
    tokenizer = base.load_tokenizer(Path(table.base), trust_remote_code=table.trust_remote_code)
    return TorchLabeller(load_classifier(encoder, folder), tokenizer, note=place.note)


class TorchLabeller:
    """A classifier with its tokenizer."""

    def __init__(self, classifier: Classifier, tokenizer: Any, *, note: str = "") -> None:
        self.classifier, self.tokenizer, self.note = classifier, tokenizer, note

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels) float32; batches of texts of like length, half of one where memory runs out."""
        limit = self.classifier.spec.max_length
        ids = self.tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]
        found = np.empty((len(ids), len(self.classifier.spec.labels)), np.float32)
        batches = by_length(map(len, ids), most_rows=BATCH_TEXTS, longest_first=True)
        for rows, logits in in_memory(batches, lambda rows: self._run([ids[row] for row in rows])):
            found[list(rows)] = logits
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
