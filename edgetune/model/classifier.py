"""Classifiers: a base encoder, its token states pooled to one vector a text, and a head over the labels.

In the flow: base folder -> Encoder in NF4 with a new head -> training -> adapter/ with the head beside it -> merged/.
The head is small and stays unquantised here; what it means is in classifier.json beside it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgetune.errors import ModelError
from edgetune.files import read_json, write_json
from edgetune.model.weights import find_tensors
from edgetune.recipe import check_table
from edgetune.runtime.bundle import is_text

HEAD = "head.safetensors"
SPEC = "classifier.json"
AGAIN = "train or copy it again"
Pooling = Literal["mean", "cls", "pooler"]
HeadKind = Literal["cosine", "linear"]


@dataclass(frozen=True)
class ClassifierSpec:
    """What a classifier's tensors mean."""

    labels: tuple[str, ...]
    """Names in the order of the logits."""
    pooling: Pooling
    head: HeadKind
    scale: float = field(metadata={"above": 0.0})
    """Of a cosine head: its logits lie in -scale to scale."""
    multi_label: bool
    max_length: int = field(metadata={"least": 1})
    """Tokens of a text, special ones included; what is longer is cut."""
    out_of_scope_label: str | None = None
    """The label whose rows are out of scope: the answer to them is "unknown". Not among `labels` if no training row has
    it: then a threshold alone finds them.
    """


class Classifier(nn.Module):
    """An encoder with a head. Calling it gives logits, (B, T) ids and mask -> (B, labels) float32."""

    def __init__(self, encoder: Any, spec: ClassifierSpec) -> None:
        """A new head, drawn from torch's generator. Raises ModelError if the encoder lacks the pooler asked for."""
        super().__init__()
        if spec.pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            raise ModelError("classify.pooling: this base has no pooler", cure='set it to "mean" or "cls"')
        self.encoder, self.spec = encoder, spec
        self.head = nn.Linear(encoder.config.hidden_size, len(spec.labels), bias=spec.head == "linear")
        self.head.to(device=encoder.device, dtype=torch.float32)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        return self.head.weight.device

    def get_base_model(self) -> Any:
        """The transformers model inside, without an adapter around it."""
        return self.encoder.get_base_model() if hasattr(self.encoder, "peft_config") else self.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, labels) float32 of padded ids and mask, both (B, T); temperature not applied."""
        return self.classify(self.embed(input_ids, attention_mask))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector (B, hidden) float32 for each text: (B, T) ids and mask, pooled as the spec says."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if self.spec.pooling == "pooler":
            return output.pooler_output.float()
        states = output.last_hidden_state.float()
        if self.spec.pooling == "cls":
            return states[:, 0]
        is_token = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * is_token).sum(1) / is_token.sum(1).clamp(min=1.0)

    def classify(self, vectors: Tensor) -> Tensor:
        """Vectors (B, hidden) -> logits (B, labels): scaled cosines with the labels' directions, or a linear map.

        In float32, under autocast too: in bfloat16 logits near 20 would come in steps of an eighth.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            if self.spec.head == "linear":
                return self.head(vectors.float())
            directions = F.normalize(self.head.weight, dim=-1)
            return self.spec.scale * F.linear(F.normalize(vectors.float(), dim=-1), directions)


def check_pooling(base: Path, pooling: Pooling) -> None:
    """Raises ModelError if a base's own pooler is asked for and its files hold none: a new one would be untrained."""
    if pooling == "pooler" and not any("pooler." in name for name in find_tensors(base)):
        raise ModelError(f"classify.pooling: {base} has no pooler", cure='set it to "mean" or "cls"')


def drop_unused_pooler(encoder: Any, pooling: Pooling) -> None:
    """Take the pooler off an encoder unless it is asked for: it would be adapted and exported for nothing."""
    if pooling != "pooler" and getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None


@torch.no_grad()
def imprint(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Start a cosine head at the mean direction of each label's texts, so that training begins from a classifier.

    Each batch: vectors (B, hidden), targets (B,) int64. Labels without a text keep their draw.
    Source: Qi et al. 2018, Low-Shot Learning with Imprinted Weights, arXiv:1712.07136, section 3.2.
    """
    sums = torch.zeros_like(classifier.head.weight)
    for vectors, targets in batches:
        sums.index_add_(0, targets, F.normalize(vectors, dim=-1))
    is_seen = sums.abs().sum(1) > 0
    classifier.head.weight[is_seen] = F.normalize(sums[is_seen], dim=-1)


def save_head(classifier: Classifier, folder: Path) -> None:
    """Write head.safetensors (float32) and classifier.json into a folder."""
    tensors = {
        name: tensor.detach().float().cpu().contiguous() for name, tensor in classifier.head.state_dict().items()
    }
    save_file(tensors, folder / HEAD)
    write_json(folder / SPEC, dataclasses.asdict(classifier.spec))


def load_classifier(encoder: Any, folder: Path) -> Classifier:
    """An encoder with the head that an adapter or merged folder holds, in eval mode; an unused pooler is dropped.

    Raises ModelError.
    """
    spec = read_spec(folder)
    drop_unused_pooler(encoder, spec.pooling)
    classifier = Classifier(encoder, spec).eval()
    load_head(classifier, folder)
    return classifier


def read_spec(folder: Path) -> ClassifierSpec:
    """classifier.json of an adapter or merged folder. Raises ModelError if it is missing or damaged."""
    file = folder / SPEC
    if not file.exists():
        raise ModelError(f"{folder}: no {SPEC}", cure="give a classifier that EdgeTune trained")
    checked, problems = check_table(ClassifierSpec, read_json(file, ModelError, cure=AGAIN))
    if not problems:
        problems = [("labels", problem) for problem in _label_problems(ClassifierSpec(**checked))]
    if problems:
        raise ModelError(f"{file}: {': '.join(problems[0])}", cure=AGAIN)
    return ClassifierSpec(**checked)


def _label_problems(spec: ClassifierSpec) -> Iterator[str]:
    """What is wrong with the labels of a spec."""
    if not spec.labels or len(set(spec.labels)) < len(spec.labels):
        yield "must be names, each of them once"
    if not all(map(is_text, spec.labels)):
        yield "holds half a surrogate pair, which is no text"


def load_head(classifier: Classifier, folder: Path) -> None:
    """Fill the head from head.safetensors. Raises ModelError for a missing, damaged or foreign file."""
    try:
        classifier.head.load_state_dict(load_file(folder / HEAD))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no {HEAD}", cure=AGAIN) from None
    except Exception as error:  # safetensors and torch raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder / HEAD}: cannot be read: {reason}", cure=AGAIN) from None


def float_copy(classifier: Classifier, dtype: torch.dtype = torch.float32) -> Classifier:
    """The classifier's modules anew, without an unused pooler, over the same tensors where they have the type.

    `dtype` is the encoder's; the head's is float32.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in classifier.buffers()}
    for part, kind in ((classifier.encoder, dtype), (classifier.head, torch.float32)):
        for parameter in part.parameters():
            shared[id(parameter)] = nn.Parameter(parameter.detach().to(kind), requires_grad=False)
    copied = copy.deepcopy(classifier, shared)
    drop_unused_pooler(copied.encoder, copied.spec.pooling)
    return copied.eval()
