"""Tasks of lm-evaluation-harness, where lm-eval is installed: edgetune/bench/harness.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.lm_eval_task import CHOICES, write_task
from edgetune.assets.nano.corpus import BOS
from edgetune.bench.child import measure
from edgetune.bench.harness import summarise
from edgetune.cli import main
from edgetune.errors import DataError
from edgetune.evaluate.compare import compare
from edgetune.recipe import ModelTable
from edgetune.report.figures import figures_of
from edgetune.runtime.bundle import open_bundle, write_manifest

LIKELIHOOD = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: "ROWS"}}
test_split: test
output_type: loglikelihood
doc_to_text: prompt
doc_to_target: completion
target_delimiter: ""
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""
ROLLING = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: "ROWS"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
"""
ANSWERS = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: "ROWS"}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: written
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 8, do_sample: false}
metric_list:
  - metric: exact_match
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def room_rows(count: int) -> list[dict[str, Any]]:
    choices = [" kitchen", " hall", " bedroom", " attic"]
    return [{"prompt": "turn on the lamp in the", "choices": choices, "label": number % 4} for number in range(count)]


def asked(kind: str, path: Path, folder: Path, name: str, **more: Any) -> dict[str, Any]:
    table = ModelTable(base=str(path), quantization="none", compute_dtype="float32")
    model = dataclasses.asdict(table) if kind == "base" else None
    task = {"task_name": name, "tasks_from": str(folder), "limit": None, "shots": None, "is_chat": False, **more}
    return {"measure": "lm-eval", "kind": kind, "name": kind, "path": str(path), "model": model, "threads": 1, **task}


def with_start_token(source: Path, folder: Path) -> Path:
    """A copy of a model's folder, or of a bundle, whose tokenizer itself puts a start token before each text."""
    from tokenizers import Tokenizer, processors

    shutil.copytree(source, folder)
    bundle = open_bundle(folder) if (folder / "edgetune.json").exists() else None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("add_bos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    if bundle is not None:
        write_manifest(dataclasses.replace(bundle, files={}))
    return folder


@pytest.mark.parametrize("adds_start_token", [False, True])
def test_scores_are_those_of_the_harnesss_own_model(
    adds_start_token: bool, tiny_base: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The same tasks by lm-eval's transformers backend as it comes, by ours, and by the fp32 bundle."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    base, bundle = tiny_base, tiny_bundle
    if adds_start_token:
        base, bundle = (with_start_token(path, tmp_path / path.name) for path in (tiny_base, tiny_bundle))
    folder = write_task(tmp_path / "tasks", "rooms", room_rows(12))
    texts = [{"prompt": f"{start}turn {n}", "completion": f" lamp {n}"} for n in range(2) for start in ("", BOS)]
    write_task(folder, "answers", texts, text=LIKELIHOOD)
    write_task(folder, "read", [{"text": "turn on the lamp " * 200}, {"text": "off"}], text=ROLLING)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tasks = {"rooms": ("acc,none", "acc_norm,none"), "answers": ("perplexity,none",), "read": ("bits_per_byte,none",)}

    def by_theirs(**settings: Any) -> dict[str, dict[str, float]]:
        model = HFLM(pretrained=str(base), dtype="float32", device="cpu", batch_size=1, **settings)
        found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
        return {task: {key: found["results"][task][key] for key in keys} for task, keys in tasks.items()}

    wanted = by_theirs()
    for kind, path in (("base", base), ("bundle", bundle)):
        for task, values in wanted.items():
            ours = measure(asked(kind, path, folder, task), lambda _: None)
            assert {key: ours["lm_eval"]["results"][key] for key in values} == pytest.approx(values, rel=1e-5)
            assert ours["value"] == ours["lm_eval"]["results"][next(iter(values))]
    assert (wanted != by_theirs(add_bos_token=False)) == adds_start_token
    assert (ours["metric"], ours["rows"]) == ("bits_per_byte", 2)


@pytest.mark.parametrize(
    ("module", "name"), [("onnxruntime_ort", "ONNXRuntimeLM"), ("onnxruntime_genai", "ONNXRuntimeGenAILM")]
)
def test_a_bundle_scores_as_in_the_harnesss_own_onnxruntime_backends(
    module: str, name: str, tiny_base: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from edgetune.export.decoder import build_bare

    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    build_bare(tiny_base, bundle)  # the graph as EdgeTune writes it
    write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=bundle, files={}))
    backend = getattr(pytest.importorskip(f"lm_eval.models.{module}"), name)
    rows = [{"prompt": f"turn {number}", "completion": f" lamp {number}"} for number in range(4)]
    folder = write_task(tmp_path / "tasks", "answers", rows, text=LIKELIHOOD)
    theirs = lm_eval.simple_evaluate(
        model=backend(pretrained=str(bundle), execution_provider="cpu"),
        tasks=["answers"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    ours = measure(asked("bundle", bundle, folder, "answers"), lambda _: None)
    assert ours["value"] == pytest.approx(theirs["results"]["answers"]["perplexity,none"], rel=1e-4)


def test_a_tag_is_the_mean_of_its_tasks_and_a_group_what_it_says_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", "rooms", room_rows(12), text=f"tag: places{CHOICES}")
    write_task(folder, "halls", room_rows(5), text=f"tag: places{CHOICES}")
    (folder / "street.yaml").write_text("group: street\ntask: [rooms, halls]\n")
    weighted = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
    (folder / "house.yaml").write_text(f"group: house\ntask: [rooms, halls]\n{weighted}\n")
    found = {
        name: measure(asked("bundle", tiny_bundle, folder, name), lambda _: None)
        for name in ("rooms", "places", "street", "house")
    }
    rooms, halls_value = (found["places"]["lm_eval"]["tasks"][name]["acc,none"] for name in ("rooms", "halls"))
    assert found["rooms"]["value"] == rooms != halls_value
    for name in ("places", "street"):
        assert found[name]["value"] == pytest.approx((rooms + halls_value) / 2)
        low, high = found[name]["interval"]
        assert low < found[name]["value"] < high
    assert found["house"]["value"] == pytest.approx((12 * rooms + 5 * halls_value) / 17)
    for name in ("places", "street", "house"):
        assert (found[name]["metric"], found[name]["rows"]) == ("acc", 17)
        assert found[name]["lm_eval"]["tasks"]["rooms"]["acc,none"] == rooms
        assert len(found[name]["answers"]) == 17
    assert found["rooms"]["lm_eval"]["tasks"] == {}
    answers = found["rooms"]["answers"]
    assert {row["reference"].strip() for row in answers} == {"kitchen", "hall", "bedroom", "attic"}
    assert [row["correct"] for row in answers] == [row["answer"] == row["reference"] for row in answers]
    assert sum(row["correct"] for row in answers) / 12 == rooms


def test_its_log_likelihoods_are_our_losses(
    tiny_base: Path, tiny_bundle: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    """The same rows, rendered alike, through evaluate: perplexity of whole answers is exp of the mean nats a row."""
    import math

    from transformers import AutoTokenizer

    from edgetune.evaluate.by_path import evaluate_path

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = []
    for row in [json.loads(line) for line in tiny_rows.read_text(encoding="utf-8").splitlines()[:6]]:
        turns = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        rows.append({"prompt": prompt, "completion": row["completion"] + "<|end|>"})
    folder = write_task(tmp_path / "tasks", "answers", rows, text=LIKELIHOOD)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(tiny_rows.read_text(encoding="utf-8").splitlines()[:6]) + "\n")
    options = [f'data.test="{data}"', 'evaluate.metric="loss"']
    ours = evaluate_path(str(tiny_bundle), overrides=options, out=tmp_path / "out").summary["results"][0]["score"]
    theirs = measure(asked("bundle", tiny_bundle, folder, "answers"), lambda _: None)
    nats_a_row = ours["loss"] * ours["trained_tokens"] / 6
    assert math.log(theirs["value"]) == pytest.approx(nats_a_row, rel=1e-4)


def test_exact_match_is_ours_on_what_the_model_itself_wrote(tiny_base: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """References are the bundle's own answers to half of the prompts: neither score can be had by chance.

    Answers with white space at an end are left out: ours is strict about what is between, the harness's about that too.
    """
    from edgetune.evaluate.by_path import evaluate_path
    from edgetune.runtime.decoder import Decoder

    decoder = Decoder(tiny_bundle, threads=1)
    asked_for = [f"turn on the lamp in room {number}" for number in range(40)]
    said = {text: decoder.generate(text, max_new_tokens=8).text for text in asked_for}
    plain = {text: answer for text, answer in said.items() if answer == answer.strip() and answer.isprintable()}
    texts, written = list(plain)[:6], list(plain.values())[:6]
    assert len(texts) == 6
    wanted = [text if number % 2 else "never" for number, text in enumerate(written)]
    written_rows = [{"prompt": p, "written": w} for p, w in zip(texts, wanted, strict=True)]
    folder = write_task(tmp_path / "tasks", "written", written_rows, text=ANSWERS)
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": p, "completion": w}) + "\n" for p, w in zip(texts, wanted, strict=True))
    )
    options = [f'data.test="{data}"', "evaluate.max_new_tokens=8"]
    ours = evaluate_path(str(tiny_bundle), overrides=options, out=tmp_path / "out").summary["results"][0]["score"]
    for kind, path in (("bundle", tiny_bundle), ("base", tiny_base)):
        theirs = measure(asked(kind, path, folder, "written", is_chat=True), lambda _: None)
        assert theirs["metric"] == "exact_match"
        assert theirs["value"] == ours["score"]
    assert ours["score"] == 0.5


def test_a_gguf_file_answers_the_harness_too(tiny_base: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from benchmarks.gguf_model import write_gguf

    file = write_gguf(tiny_base, tmp_path / "tiny.gguf")
    folder = write_task(tmp_path / "tasks", "rooms", room_rows(8))
    ours = measure(asked("gguf", file, folder, "rooms", limit=4), lambda _: None)
    assert ours["value"] == measure(asked("bundle", tiny_bundle, folder, "rooms", limit=4), lambda _: None)["value"]
    assert ours["rows"] == 4


def test_bench_shows_a_task_and_says_what_is_wrong_with_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_task(tmp_path / "tasks", "rooms", room_rows(8))
    arguments = ["bench", str(tiny_bundle), "--repeats", "1", "--threads", "1", "--tasks-from", str(folder)]
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(main, [*arguments, "--task", "lm-eval:rooms", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    (target,) = json.loads(out.read_text())["targets"]
    same = compare(tmp_path / target["answers"], tmp_path / target["answers"])
    assert (same.metric, same.rows, same.a_score) == ("correct", 8, target["score"]["value"])
    assert "score.lm_eval.rooms.acc" in figures_of(target)
    assert done.stdout.splitlines()[1].startswith("lm-eval rooms")
    assert "%" in done.stdout.splitlines()[1]
    monkeypatch.setattr("edgetune.bench.bench.measure_costs", lambda targets, *_: ({t.name: {} for t in targets}, {}))
    done = CliRunner().invoke(main, [*arguments, "--task", "lm-eval:absent"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has no task 'absent'" in done.stderr
    (folder / "rooms.jsonl").unlink()
    done = CliRunner().invoke(main, [*arguments, "--task", "lm-eval:rooms"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be run" in done.stderr
    assert CliRunner().invoke(main, ["bench", "x", "--task", "no-such"]).exit_code == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    done = CliRunner().invoke(main, [*arguments, "--task", "lm-eval:rooms"])
    assert (done.exit_code, done.stdout) == (3, "")
    assert "pip install 'edgetune[lm-eval]'" in done.stderr


def test_a_task_without_a_number_is_refused_and_one_without_an_error_has_no_interval() -> None:
    with pytest.raises(DataError, match="gave no number"):
        summarise("t", {"results": {"t": {"alias": "t"}}})
    found = summarise("t", {"results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A"}}})
    assert (found["metric"], found["value"], found["interval"]) == ("acc", 0.5, None)
    assert "lm_eval" in sys.modules or found["lm_eval"]["library"]
