"""verify/generation.py: a bundle that is not what was trained does not pass."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_files import write_float32_scales

from edgetune.bundle.generation import build_bundle
from edgetune.data.encode import NOT_TRAINED, Encoded
from edgetune.export.read_graph import GraphWeights
from edgetune.model.weights import find_tensors
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe
from edgetune.runtime.bundle import Bundle
from edgetune.verify import generation
from edgetune.verify.generation import Verification, verify


@pytest.fixture(scope="module")
def merged(a_decoder: Callable[..., Path]) -> Path:
    return a_decoder()


@pytest.fixture(scope="module")
def good(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Precision -> (bundle, tokenizer), not verified yet."""
    made = {}
    for precision in ("int4", "fp32"):
        recipe = Recipe(
            ModelTable(base="tiny"), DataTable(train="rows"), export=ExportTable(precision=precision), name="tiny"
        )
        made[precision] = build_bundle(merged, tmp_path_factory.mktemp(precision), recipe, is_chat=True)
    return made


@pytest.fixture
def check(good: dict, merged: Path, prompts: list, tmp_path: Path) -> Callable[..., Verification]:
    """Verify a copy of a good bundle after `change(bundle)` has had its way with it."""

    def run(
        change: Callable[[Bundle], object] = lambda _: None, precision: str = "int4", answered: Sequence[Encoded] = ()
    ) -> Verification:
        bundle, tokenizer = good[precision]
        folder = shutil.copytree(bundle.path, tmp_path / "copy")
        bundle = dataclasses.replace(bundle, path=folder)
        changed = change(bundle)
        changed = changed if isinstance(changed, Bundle) else bundle
        return verify(changed, merged, prompts, tokenizer=tokenizer, answered=answered)

    return run


def failures(verification: Verification) -> set[str]:
    assert not verification.passed
    return {failed.name for failed in verification.failures}


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_a_good_bundle_passes(check, precision):
    assert check(precision=precision).failures == ()


def test_a_bundle_with_float32_scales_as_they_were_at_first_passes(check):
    assert check(lambda bundle: write_float32_scales(bundle.path / "model.onnx")).failures == ()


@pytest.mark.parametrize("part", ["packed", "scales", "zero_points"])
def test_a_changed_byte_of_a_weight_is_found(check, part):
    def change(bundle: Bundle) -> None:
        edit(bundle, f"model.layers.1.mlp.down_proj.weight.{part}", lambda data: data[:1] + b"\x11" + data[2:])

    assert "weight bytes" in failures(check(change))


def test_a_zeroed_layer_is_found_in_bytes_and_logits(check):
    def change(bundle: Bundle) -> None:
        edit(bundle, "model.layers.0.mlp.down_proj.weight.scales", lambda data: bytes(len(data)))

    assert "weight bytes" in failures(check(change))


def test_a_zeroed_layer_of_a_float_bundle_is_found_in_the_logits(check):
    def change(bundle: Bundle) -> None:
        edit(bundle, "model.layers.0.mlp.up_proj.MatMul.weight", lambda data: bytes(len(data)))

    assert failures(check(change, precision="fp32")) == {"logits against torch"}


def test_a_norm_that_differs_is_found_in_the_logits(check):
    def change(bundle: Bundle) -> None:
        scaled = lambda data: (np.frombuffer(data, np.float32) * 1.05).astype(np.float32).tobytes()  # noqa: E731
        edit_inline(bundle, "model.layers.1.post_attention_layernorm.weight", scaled)

    assert failures(check(change)) == {"logits against torch"}


def test_swapped_projections_are_found_in_the_logits(check):
    """Bytes are compared by node name; a graph that wires the right bytes wrongly computes something else."""

    def change(bundle: Bundle) -> None:
        model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
        halves = next(node for node in model.graph.node if node.name == "/model/layers.0/mlp/gate_up_proj/MatMul/Split")
        halves.output[0], halves.output[1] = halves.output[1], halves.output[0]
        onnx.save(model, str(bundle.path / "model.onnx"))

    found = failures(check(change))
    assert found & {"logits against torch", "logits"}
    assert "weight bytes" not in found


def test_another_block_size_or_level_than_the_manifest_says_is_found(check):
    def change(bundle: Bundle) -> Bundle:
        assert bundle.grid is not None
        return dataclasses.replace(bundle, grid=dataclasses.replace(bundle.grid, accuracy_level=1))

    assert "weight bytes" in failures(check(change))


def test_a_template_that_renders_otherwise_is_found(check):
    def change(bundle: Bundle) -> Bundle:
        template = (bundle.chat.template or "").replace("user", "User") + " "
        return dataclasses.replace(bundle, chat=dataclasses.replace(bundle.chat, template=template))

    assert "rendered prompts" in failures(check(change))


def test_a_tokenizer_with_other_pieces_is_found(check):
    def change(bundle: Bundle) -> None:
        path = bundle.path / "tokenizer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["model"]["merges"] = values["model"]["merges"][:20]
        path.write_text(json.dumps(values), encoding="utf-8")

    assert "token ids" in failures(check(change))


def test_an_end_of_turn_token_that_is_not_training_s_is_found(check):
    def change(bundle: Bundle) -> None:
        path = bundle.path / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["eos_token_id"] = 7
        path.write_text(json.dumps(config))

    assert failures(check(change)) == {"end-of-turn tokens"}


def test_a_truncated_data_file_is_refused_with_a_reason(check):
    def change(bundle: Bundle) -> None:
        path = bundle.path / "model.onnx.data"
        path.write_bytes(path.read_bytes()[:1000])

    verification = check(change)
    assert {"weights", "logits"} <= failures(verification)
    assert all(failed.detail for failed in verification.failures)


def test_the_outcome_can_be_written_as_json(check):
    values = check().to_json()
    assert values["passed"] is True
    assert json.loads(json.dumps(values)) == values


def edit(bundle: Bundle, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of an external tensor where they lie."""
    from onnx.external_data_helper import ExternalDataInfo

    model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
    info = ExternalDataInfo(next(tensor for tensor in model.graph.initializer if tensor.name == name))
    path = bundle.path / info.location
    data = bytearray(path.read_bytes())
    data[info.offset : info.offset + info.length] = change(bytes(data[info.offset : info.offset + info.length]))
    path.write_bytes(data)


def edit_inline(bundle: Bundle, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a tensor inside model.onnx."""
    path = bundle.path / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(item for item in model.graph.initializer if name in item.name)
    tensor.raw_data = change(tensor.raw_data)
    onnx.save(model, str(path))


def test_graph_weights_refuse_what_is_no_graph(tmp_path, merged):
    from edgetune.errors import BundleError

    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be read"):
        GraphWeights(tmp_path / "model.onnx", find_tensors(merged))


def answered(bundle: Bundle, *, end: int | None = None, rows: int = 6) -> list[Encoded]:
    """Rows whose answers end with `end`, or as the device ends them; something that is not learned follows."""
    end = bundle.chat_format.eos_ids[0] if end is None else end
    ids = [9, 10, 11, end, 12]
    labels = [NOT_TRAINED, NOT_TRAINED, 11, end, NOT_TRAINED]
    return [Encoded(ids, labels, f"rows.jsonl:{number}") for number in range(1, rows + 1)]


def detail(verification: Verification, name: str) -> str:
    (found,) = (check.detail for check in verification.checks if check.name == name)
    return found


def test_answers_that_end_as_trained_pass(check, good):
    verification = check(answered=answered(good["int4"][0]))
    assert verification.passed
    assert detail(verification, "ends of answers") == "6 answers of training"
    assert "of 6 answers of training, with torch after" in detail(verification, "ends that are found")


def change_ends(bundle: Bundle, *, manifest: tuple[int, ...] | None, settings: object) -> Bundle:
    """The bundle with other end tokens in its manifest, in the settings of onnxruntime-genai, or in both."""
    path = bundle.path / "genai_config.json"
    config = json.loads(path.read_text())
    if settings == "missing":
        del config["model"]["eos_token_id"]
    elif settings is not None:
        config["model"]["eos_token_id"] = settings
    path.write_text(json.dumps(config))
    chat = bundle.chat if manifest is None else dataclasses.replace(bundle.chat, eos_ids=manifest)
    return dataclasses.replace(bundle, chat=chat)


@pytest.mark.parametrize(
    ("manifest", "settings"),
    [((7,), None), ((), None), (None, [7]), (None, []), (None, "missing"), ((7,), [7]), ((7,), 7)],
)
def test_end_tokens_that_are_wrong_or_missing_anywhere_fail(check, good, manifest, settings):
    change = partial(change_ends, manifest=manifest, settings=settings)
    found = failures(check(change, answered=answered(good["int4"][0])))
    assert found & {"end-of-turn tokens", "end of turn"}  # the second where it cannot even be asked
    assert ("ends of answers" in found) == (manifest is not None)


def test_an_end_that_training_had_and_the_device_does_not_know_is_found_though_all_settings_agree(check, good):
    verification = check(answered=answered(good["int4"][0], end=7))
    assert failures(verification) == {"ends of answers"}
    assert detail(verification, "ends of answers").endswith("another end: rows.jsonl:1 with token 7")


@pytest.mark.parametrize(("found_in_torch", "is_wrong"), [(6, True), (4, True), (3, False), (0, False)])
def test_an_end_that_only_torch_finds_is_one_that_was_lost(check, good, monkeypatch, found_in_torch, is_wrong):
    bundle = good["int4"][0]
    end, calls = bundle.chat_format.eos_ids[0], iter(range(6))

    def torch_s(*_):
        logits = np.zeros(512, dtype=np.float32)
        logits[end if next(calls) < found_in_torch else end + 1] = 1.0
        return logits

    class Device:
        def __init__(self, _):
            pass

        def logits(self, ids):
            return np.eye(512, dtype=np.float32)[[end + 1] * len(ids)]

    monkeypatch.setattr(generation, "last_logits", torch_s)
    monkeypatch.setattr(generation, "Logits", Device)
    verification = check(answered=answered(bundle))
    assert ({failed.name for failed in verification.failures} == {"ends that are found"}) == is_wrong
    assert detail(verification, "ends that are found") == (
        f"likeliest after 0 of 6 answers of training, with torch after {found_in_torch}"
    )


def test_prompts_are_answered_whole(check, monkeypatch):
    lengths, plain = [], generation.Decoder.generate

    def look(self, ids, **settings):
        lengths.append(len(ids))
        return plain(self, ids, **settings)

    monkeypatch.setattr(generation.Decoder, "generate", look)
    monkeypatch.setattr(generation, "MOST_TOKENS", 3)
    assert check().passed
    assert min(lengths) > 3
