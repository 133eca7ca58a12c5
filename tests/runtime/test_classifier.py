"""Classifier: labels, probabilities and what is unknown."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetune.errors import BundleError, PromptError
from edgetune.runtime import classifier as module
from edgetune.runtime.bundle import MANIFEST, ClassifierFormat, open_bundle, write_manifest
from edgetune.runtime.classifier import Classifier

FORMAT = ClassifierFormat(labels=("a", "b", "c"), multi_label=False, max_length=8, pad_id=0)


@pytest.fixture(scope="module")
def classifier(word_bundle: Path) -> Classifier:
    return Classifier(word_bundle)


@pytest.fixture
def with_format(word_bundle: Path) -> Callable[..., Classifier]:
    """The bundle with other values in its classifier format."""

    def make(**changes: object) -> Classifier:
        bundle = open_bundle(word_bundle)
        changed = dataclasses.replace(bundle.classifier_format, **changes)  # type: ignore[arg-type]
        return Classifier(dataclasses.replace(bundle, classifier=changed))

    return make


def test_the_likeliest_label_is_the_answer(classifier: Classifier) -> None:
    (answer,) = classifier.classify(["My CARD has not arrived"])
    assert (answer.label, answer.labels, answer.is_unknown) == ("card", ("card",), False)
    assert answer.probability == pytest.approx(np.exp(8) / (np.exp(8) + 2))
    assert answer.top == (("card", answer.probability),)


def test_texts_of_any_lengths_are_answered_in_their_order(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones are padded beside long ones, and the batches go by length."""
    texts = [f"{word} {'and more ' * (number % 5)}" for number, word in enumerate(["money", "card", "weather"] * 20)]
    wanted = ["money", "card", "weather"] * 20
    assert [answer.label for answer in classifier.classify(texts)] == wanted
    monkeypatch.setattr(module, "BATCH_TOKENS", 16)
    monkeypatch.setattr(module, "BATCH_TEXTS", 3)
    assert [answer.label for answer in classifier.classify(texts)] == wanted


def test_no_texts_have_no_answers(classifier: Classifier) -> None:
    assert classifier.classify([]) == []
    assert classifier.logits([]).shape == (0, 3)


def test_logits_are_float32_as_the_graph_makes_them(classifier: Classifier) -> None:
    logits = classifier.logits(["card", "money money"])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[8, 0, 0], [0, 16, 0]])


def test_top_k_lists_the_likeliest_labels_all_of_them_at_most(classifier: Classifier) -> None:
    text = "card card money"
    assert [label for label, _ in classifier.classify([text], top_k=2)[0].top] == ["card", "money"]
    shares = [share for _, share in classifier.classify([text], top_k=9)[0].top]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1)
    with pytest.raises(PromptError, match="top_k is 0, must be at least 1"):
        classifier.classify([text], top_k=0)


def test_a_text_that_is_too_long_is_cut_with_its_special_tokens_kept(classifier: Classifier) -> None:
    (ids,) = classifier.token_ids(["card " * 50 + "money"])
    assert len(ids) == 12
    assert (ids[0], ids[-1]) == (2, 3)


def test_temperature_changes_probabilities_and_no_label(with_format: Callable[..., Classifier]) -> None:
    (answer,) = with_format(temperature=8.0).classify(["card"])
    assert answer.label == "card"
    assert answer.probability == pytest.approx(np.e / (np.e + 2))


def test_below_the_threshold_a_text_is_unknown_and_still_has_its_top(with_format: Callable[..., Classifier]) -> None:
    sure, unsure = with_format(threshold=0.6).classify(["card", "something else"], top_k=3)
    assert (sure.label, sure.is_unknown) == ("card", False)
    assert (unsure.label, unsure.labels, unsure.is_unknown) == (None, (), True)
    assert unsure.probability == pytest.approx(1 / 3)
    assert len(unsure.top) == 3


def test_the_out_of_scope_label_means_unknown(with_format: Callable[..., Classifier]) -> None:
    known, unknown = with_format(out_of_scope_label="weather").classify(["card", "weather"])
    assert (known.label, unknown.label) == ("card", None)
    assert unknown.is_unknown
    assert unknown.top[0][0] == "weather"


def test_several_labels_can_apply_or_none(with_format: Callable[..., Classifier]) -> None:
    """A vote of 0 is a probability of one half, which applies; the temperature does not move it."""
    classifier = with_format(multi_label=True)
    both = classifier.classify(["card money"], top_k=3)[0]
    assert both.labels == ("card", "money", "weather")
    assert both.top[0] == ("card", pytest.approx(1 / (1 + np.exp(-8))))
    answer = module.answer_of(np.array([0.2, 0.4, 0.1]), classifier.format, 1)
    assert (answer.label, answer.labels, answer.is_unknown) == (None, (), False)


def test_a_text_that_surely_has_no_label_is_not_unknown(with_format: Callable[..., Classifier]) -> None:
    format_ = with_format(multi_label=True, threshold=0.9).format
    sure, unsure = (module.answer_of(np.array(row), format_, 1) for row in ([0.01, 0.02, 0.05], [0.99, 0.6, 0.01]))
    assert (sure.labels, sure.is_unknown) == ((), False)
    assert (unsure.labels, unsure.label, unsure.is_unknown) == ((), None, True)


def test_the_out_of_scope_label_is_no_answer_beside_others(with_format: Callable[..., Classifier]) -> None:
    classifier = with_format(multi_label=True, out_of_scope_label="money")
    assert "money" not in classifier.classify(["card card money"])[0].labels


def test_of_equal_labels_the_first_is_the_answer(classifier: Classifier) -> None:
    assert classifier.classify(["nothing known"])[0].label == "card"


@pytest.mark.parametrize(
    ("text", "message"), [("", "the text is empty"), (" \n\t", "the text is empty"), ("a\ud800b", "not valid UTF-8")]
)
def test_a_text_that_is_none_is_refused(classifier: Classifier, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        classifier.classify(["card", text])


def test_a_single_text_in_place_of_a_list_is_a_mistake_of_the_caller(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="give a list"):
        classifier.classify("card")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"no graph", r"cannot be loaded: .*; copy or export it again"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: cannot be read"),
    ],
)
def test_a_damaged_file_is_a_bundle_error(
    word_bundle: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = shutil.copytree(word_bundle, tmp_path / "copy")
    bundle = open_bundle(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Classifier(bundle)


def test_labels_that_do_not_fit_the_graph_are_a_bundle_error(with_format: Callable[..., Classifier]) -> None:
    with pytest.raises(BundleError, match=r"answers 2 labels with an array \(1, 3\)"):
        with_format(labels=("a", "b")).classify(["card"])


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_length_that_special_tokens_alone_fill_is_refused(
    with_format: Callable[..., Classifier], max_length: int
) -> None:
    with pytest.raises(BundleError, match=f"max_length {max_length} leaves no room for a text"):
        with_format(max_length=max_length)


def test_a_decoder_bundle_is_refused_with_the_verb_that_runs_it(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no labels; use `edgetune generate`"):
        Classifier(tiny_bundle)


def test_a_classifier_bundle_is_refused_by_what_writes_text(word_bundle: Path) -> None:
    from edgetune.runtime.decoder import Decoder
    from edgetune.runtime.prompt import Prompter

    for opened in (Decoder, lambda path: Prompter(open_bundle(path))):
        with pytest.raises(BundleError, match="is a classifier, it writes no text; use `edgetune classify`"):
            opened(word_bundle)


GOOD = {"labels": ["a", "b"], "multi_label": False, "max_length": 8, "pad_id": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, r"classifier\.labels is \(\)"),
        ({"labels": "ab"}, r"classifier\.labels"),
        ({"labels": ["a", 5]}, r"classifier\.labels"),
        ({"labels": ["a", "a"]}, r"classifier\.labels"),
        ({"labels": ["a", "\ud800"]}, r"classifier\.labels"),
        ({"labels": None}, "TypeError"),
        ({"multi_label": "no"}, r"classifier\.multi_label is 'no'"),
        ({"max_length": 0}, r"classifier\.max_length is 0"),
        ({"max_length": 8.0}, r"classifier\.max_length"),
        ({"max_length": True}, r"classifier\.max_length"),
        ({"pad_id": -1}, r"classifier\.pad_id"),
        ({"pad_id": None}, r"classifier\.pad_id"),
        ({"pad_id": 2**63}, r"classifier\.pad_id"),
        ({"pad_id": True}, r"classifier\.pad_id"),
        ({"temperature": 0}, r"classifier\.temperature is 0"),
        ({"temperature": -1.5}, r"classifier\.temperature"),
        ({"temperature": float("nan")}, r"classifier\.temperature is nan"),
        ({"temperature": float("inf")}, r"classifier\.temperature is inf"),
        ({"temperature": 10**400}, "OverflowError"),
        ({"temperature": "1"}, r"classifier\.temperature"),
        ({"threshold": 1.5}, r"classifier\.threshold is 1\.5"),
        ({"threshold": "0.5"}, r"classifier\.threshold"),
        ({"out_of_scope_label": "z"}, r"classifier\.out_of_scope_label is 'z'"),
        ({"out_of_scope_label": ["a"]}, r"classifier\.out_of_scope_label"),
        ({"softness": 1}, "softness"),
    ],
)
def test_a_classifier_format_that_cannot_be_trusted_is_refused(
    word_bundle: Path, tmp_path: Path, change: dict, message: str
) -> None:
    folder = shutil.copytree(word_bundle, tmp_path / "copy")
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, "classifier": {**GOOD, **change}}))
    with pytest.raises(BundleError, match=f"damaged.*{message}.*copy or export it again"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": None}, "damaged"),
        ({"classifier": []}, "damaged"),
        ({"task": "generation"}, "damaged.*a generation bundle with a classifier"),
        ({"task": "causal-lm"}, "damaged.*a generation bundle with a classifier"),
        ({"chat": {"template": None}}, "damaged.*a classification bundle with a chat"),
        ({"task": None}, "unknown task None"),
        ({"files": {}}, r"tokenizer\.json is not listed, model\.onnx is not listed"),
    ],
)
def test_a_manifest_of_another_task_than_its_format_is_refused(
    word_bundle: Path, tmp_path: Path, change: dict, message: str
) -> None:
    folder = shutil.copytree(word_bundle, tmp_path / "copy")
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **change}))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_a_tokenizer_that_cannot_encode_is_a_damaged_bundle(word_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(word_bundle, tmp_path / "copy")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["unk_token"] = "[NONE]"
    (folder / "tokenizer.json").write_text(json.dumps(values))
    classifier = Classifier(write_manifest(dataclasses.replace(open_bundle(word_bundle), path=folder, files={})))
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot encode a text: .*; copy or export it again"):
        classifier.classify(["hail"])


def test_a_damaged_graph_prints_nothing_of_its_own(
    word_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(word_bundle, tmp_path / "copy")
    bundle = open_bundle(folder)
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"Gather", b"Gatter"))
    with pytest.raises(BundleError, match="cannot be loaded"):
        Classifier(bundle)
    assert capfd.readouterr() == ("", "")
