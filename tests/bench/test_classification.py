"""Encoders in a bench: edgetune/bench/classification.py and labelling.py."""

from __future__ import annotations

import json
from pathlib import Path

from edgetune.bench.bench import bench
from edgetune.bench.child import measure
from edgetune.bench.classification import columns, load_bundle
from edgetune.bench.labelling import make_texts
from edgetune.bench.settings import Settings
from edgetune.bench.table import plain
from edgetune.report.figures import figures_of


def request(word_bundle: Path, **values: object) -> dict:
    return {"kind": "bundle", "name": "words", "path": str(word_bundle), "threads": 1, **values}


def test_texts_have_as_many_tokens_as_are_asked_for(word_bundle: Path) -> None:
    labeller, longest, device = load_bundle(request(word_bundle))
    assert (longest, device) == (12, "cpu")
    texts = make_texts(labeller, 9, 5)
    assert [labeller.count_tokens(text) for text in texts] == [9] * 5
    assert len(set(texts)) == 5
    assert make_texts(labeller, 9, 5) == texts


def test_every_batch_of_every_length_that_fits_is_timed(word_bundle: Path) -> None:
    asked = request(word_bundle, measure="labelling", passes=3, lengths=(8, 16), batches=(1, 4))
    found = measure(asked, lambda _: None)
    assert {length: list(sizes) for length, sizes in found["batch_s"].items()} == {"8": ["1", "4"]}
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in found["batch_s"]["8"].values())


def test_lengths_beyond_the_models_are_absent_and_rates_are_of_texts() -> None:
    seconds = {"16": {"1": [0.5], "8": [2.0], "32": [4.0]}}
    memory = {1: {"cold": 10, "warm": None, "device_bytes": None}}
    facts = {"device": "cpu", "context_length": 20, "load_s": 1.0, "batch_s": seconds, "memory": memory}
    found = columns([facts, facts], Settings(1), {})["labelling"]
    assert found["batch"]["16"]["8"]["texts_per_s"]["median"] == 4.0
    assert found["batch"]["64"] == {"absent": "its texts hold 20 tokens"}
    assert found["peak_bytes"]["1"]["warm"] == {"absent": "the system cannot start measuring a peak anew"}
    assert found["peak_bytes"]["1"]["tokens"] == 20


def test_a_classifier_is_scored_and_timed_and_has_no_tokens_a_second(
    tiny_bundle: Path, word_bundle: Path, tmp_path: Path
) -> None:
    rows = [("my card", "card"), ("the money", "money"), ("weather now", "weather"), ("card of money", "card")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    settings = Settings(1, repeats=1, passes=1, prompts=(8,), decode_prompt=4, decode_new=3, contexts=(16,))
    report = bench([str(word_bundle)], settings, overrides=[f'data.test="{data}"'], progress=lambda _: None)
    (target,) = report["targets"]
    assert target["score"]["metric"] == "accuracy"
    assert target["score"]["value"] >= 0.75
    assert target["classes"]["accuracy"] == target["score"]["value"]
    assert target["decode_tokens_per_s"] == target["kl"] == {"absent": "labels texts, writes none"}
    assert target["labelling"]["batch"]["16"] == {"absent": "its texts hold 12 tokens"}
    assert target["labelling"]["peak_bytes"]["1"]["cold"]["median"] > 0
    assert {"score.accuracy", "score.macro_f1", "ece", "labelling.peak_bytes.32.warm"} <= set(figures_of(target))
    lines = plain(report).splitlines()
    assert lines[1].startswith("accuracy")
    assert not any(line.startswith("decode") for line in lines)
    both = bench([str(word_bundle), str(tiny_bundle)], settings, progress=lambda _: None)
    assert both["targets"][1]["labelling"] == {"absent": "writes text, labels none"}
    assert "texts of 16 tokens" in plain(both)
    assert "decode tokens/s" in plain(both)


def test_a_torch_classifier_is_measured_and_a_run_that_did_not_end_tells_no_cost(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    from edgetune.lora.merge import merge
    from edgetune.recipe import parse_recipe
    from edgetune.run_dir import RunDir
    from edgetune.train.loop import train

    rows = [{"text": f"turn {name} the lamp in room {n}", "label": name} for n in range(20) for name in ("on", "off")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        f'[model]\nbase = "{tiny_encoder}"\ntask = "classification"\ncompute_dtype = "float32"\n'
        f'[data]\ntrain = "{tmp_path / "rows.jsonl"}"\neval_fraction = 0.2\n'
        "[lora]\nr = 4\n[train]\nepochs = 1\nbatch_size = 8\n",
        source="recipe.toml",
    )
    run_dir = RunDir(tmp_path / "run")
    train(recipe, run_dir)
    merge(run_dir.adapter, tiny_encoder, run_dir.merged)
    report = bench([str(run_dir.merged)], Settings(1, repeats=1, passes=1), progress=lambda _: None)
    (target,) = report["targets"]
    assert target["labelling"]["batch"]["64"]["32"]["texts_per_s"]["median"] > 0
    assert target["labelling"]["batch"]["128"] == {"absent": "its texts hold 64 tokens"}
    assert 0 <= target["score"]["value"] <= 1
    assert target["score"]["rows"] == report["data"]["rows"] > 0
    (training,) = report["training"]
    assert training["peak_bytes"]["value"] > 0
    assert training["step_tokens_per_s"]["median"] > 0
    assert "training of run: " in plain(report)
