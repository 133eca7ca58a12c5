"""A bench of real objects against references measured apart: edgetune/bench/."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench.bench import bench
from edgetune.bench.bundle_engine import BundleEngine
from edgetune.bench.decoding import decode_lengths
from edgetune.bench.engine import Weights
from edgetune.bench.noise import is_absent
from edgetune.bench.settings import Settings
from edgetune.bench.table import plain
from edgetune.errors import RunError
from edgetune.recipe import ModelTable
from edgetune.report.figures import figures_of, find

TIME = Path("/usr/bin/time")


def test_perplexity_is_that_of_a_plain_torch_loop(report: dict, tiny_base: Path, tiny_rows: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    nats, count = 0.0, 0
    rows = [json.loads(line) for line in tiny_rows.read_text(encoding="utf-8").splitlines()]
    wanted = {int(place) for place in _places(report, rows)}
    for number in wanted:
        messages = [{"role": "user", "content": rows[number]["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(prompt + rows[number]["completion"] + "<|end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        nats -= sum(float(logits[at - 1].log_softmax(-1)[ids[at]]) for at in range(start, len(ids)))
        count += len(ids) - start
    for target in report["targets"]:
        assert target["perplexity"]["trained_tokens"] == count
        assert target["perplexity"]["value"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def _places(report: dict, rows: list) -> list[int]:
    """The rows that were drawn: as evaluate draws them, by seed 0."""
    import random

    assert report["data"]["source_rows"] == len(rows)
    return random.Random(0).sample(range(len(rows)), report["data"]["rows"])


def test_both_forms_of_a_model_are_worth_the_same_and_the_reference_is_at_no_distance(report: dict) -> None:
    bundle, base = report["targets"]
    assert report["reference"] == bundle["name"]
    assert bundle["kl"]["kl"] == pytest.approx(0, abs=1e-9)
    assert base["kl"]["kl"] == pytest.approx(0, abs=1e-5)  # other kernels, float32
    assert base["kl"]["agreement"] == 1.0
    assert base["score"]["value"] == bundle["score"]["value"]


def test_what_a_target_cannot_give_is_absent_with_the_reason_and_nothing_is_zero(report: dict) -> None:
    for target in report["targets"]:
        assert target["peak_bytes"]["2048"] == {"absent": "its context holds 512 tokens"}
        assert target["time_to_first_token_s"]["512"] == {"absent": "its context holds 512 tokens"}
        for key in ("load_s", "prefill_tokens_per_s", "decode_tokens_per_s"):
            assert target[key]["median"] > 0
            assert target[key]["processes"] == 2
        assert target["prefill_tokens_per_s"]["prompt_tokens"] == 8
        assert target["decode_tokens_per_s"]["new_tokens"] == 5
        assert target["share_of_bandwidth"]["value"] > 0
        assert target["share_of_arithmetic_peak"]["value"] > 0
        assert is_absent(target["energy_j_per_token"]) or target["energy_j_per_token"]["median"] > 0
    bundle, base = report["targets"]
    assert bundle["peak_bytes"]["64"]["cold"]["median"] < base["peak_bytes"]["64"]["cold"]["median"]
    assert bundle["disk_bytes"] == sum(path.stat().st_size for path in Path(bundle["path"]).iterdir())


def summaries(values: dict, path: str = "") -> list[str]:
    """The paths of everything in a target that is a number with its noise, or a measured value."""
    if {"median", "value"} & set(values):
        return [path]
    return [
        key for name, value in values.items() if isinstance(value, dict) for key in summaries(value, f"{path}.{name}")
    ]


def test_every_measured_figure_is_in_the_table_of_figures(report: dict) -> None:
    for target in report["targets"]:
        found = figures_of(target)
        assert {path[1:] for path in summaries(target)} - {"score"} <= set(found)
        assert {"score.exact_match", "kl_to_reference", "same_next_token", "disk_bytes"} <= set(found)
        assert all(find(key) for key in found)


def test_the_report_says_where_it_comes_from(report: dict) -> None:
    assert (report["format"], report["version"]) == ("edgetune-bench", 1)
    assert report["settings"]["threads"] == 1
    assert report["machine"]["cpu"]["bytes_per_s"]["best"] > 0
    assert report["provenance"]["packages"]["onnxruntime"]
    assert report["provenance"]["memory_bytes"] > 1 << 28
    assert report["provenance"]["cores"] >= 1
    assert isinstance(report["provenance"]["gpus"], list)
    assert report["left_out"] == []
    assert report["data"]["seed"] == 0
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report, allow_nan=False))


def test_the_table_has_a_line_for_each_quantity_and_says_why_one_is_absent(report: dict) -> None:
    lines = plain(report).splitlines()
    assert lines[0].split() == [target["name"] for target in report["targets"]]
    assert next(line for line in lines if line.startswith("peak memory, context 2,048")).split()[-2:] == [
        "-",
        "-",
    ]
    assert any(line.startswith("- ") and line.endswith("its context holds 512 tokens") for line in lines)
    assert re.search(r"^decode tokens/s +[\d,.]+ ±[\d.]+% +[\d,.]+ ±[\d.]+%$", "\n".join(lines), re.MULTILINE)


def test_without_rows_nothing_is_scored_and_the_rest_is_measured(tiny_bundle: Path) -> None:
    settings = Settings(1, repeats=1, passes=1, prompts=(8,), decode_prompt=8, decode_new=4, contexts=(64,))
    report = bench([str(tiny_bundle)], settings, progress=lambda _: None)
    (target,) = report["targets"]
    assert target["score"] == target["kl"] == {"absent": "no rows: give some with --data"}
    assert report["data"] is None
    assert target["load_s"]["spread"] is None
    assert "no rows" in plain(report)


def test_an_unknown_reference_is_refused_before_anything_is_measured(tiny_bundle: Path) -> None:
    with pytest.raises(RunError, match="none of the targets"):
        bench([str(tiny_bundle)], Settings(1), reference="other", progress=lambda _: None)


def test_weights_counted_in_a_graph_are_those_counted_in_torch(tiny_bundle: Path, tiny_base: Path) -> None:
    from edgetune.bench.torch_engine import load

    table = ModelTable(base=str(tiny_base), quantization="none", compute_dtype="float32")
    request = {"kind": "base", "path": str(tiny_base), "model": dataclasses.asdict(table), "threads": 1}
    graph, torch = BundleEngine(tiny_bundle, threads=1).weights(), load(request).weights()
    assert isinstance(graph, Weights)
    assert (graph.body, graph.head) == (torch.body, torch.head) == (2 * (4 * 64 * 64 + 3 * 64 * 128), 512 * 64)
    assert torch.bytes == 4 * (torch.body + torch.head)
    assert torch.bytes <= graph.bytes < 1.7 * torch.bytes  # and norms, and tables of RoPE for 512 places
    assert graph.prefill_flops(10) == 2 * 10 * (graph.body + graph.head)
    assert torch.prefill_flops(10) == 2 * (10 * torch.body + torch.head)


def test_a_short_context_is_halved_between_prompt_and_answer() -> None:
    wanted = {"prompt": 128, "new": 128}
    assert decode_lengths(4096, wanted) == (128, 128)
    assert decode_lengths(200, wanted) == (100, 100)
    assert decode_lengths(3, wanted) == (1, 2)


@pytest.mark.skipif(not TIME.exists(), reason="no /usr/bin/time")
@pytest.mark.parametrize(
    ("kind", "is_warm_too"),
    [("bundle", False), ("bundle", True), ("base", True), pytest.param("base", False, marks=pytest.mark.slow)],
)
def test_peak_memory_is_what_time_says(
    kind: str, is_warm_too: bool, tiny_bundle: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """Within 3 %. time sees the peak since it was last measured anew: cold alone, or warm."""
    table = ModelTable(base=str(tiny_base), quantization="none", compute_dtype="float32")
    request: dict[str, Any] = {"measure": "memory", "context": 256, "is_warm_too": is_warm_too, "threads": 1}
    request |= {"kind": kind, "name": kind, "path": str(tiny_bundle if kind == "bundle" else tiny_base)}
    request["model"] = dataclasses.asdict(table) if kind == "base" else None
    command = [str(TIME), "-v", "-o", str(tmp_path / "time"), sys.executable, "-m", "edgetune.bench.child"]
    told = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True).stdout
    found = json.loads(told.splitlines()[-1])["result"]
    maximum = re.search(r"Maximum resident set size \(kbytes\): (\d+)", (tmp_path / "time").read_text())
    assert maximum
    assert found["warm" if is_warm_too else "cold"] == pytest.approx(int(maximum[1]) * 1024, rel=0.03)


def test_gsm8k_is_scored_by_its_final_numbers(tiny_bundle: Path, data_dir: Path) -> None:
    columns = 'data.columns={prompt = "question", completion = "answer"}'
    rows = [f'data.test="{data_dir / "gsm8k"}"', columns, "evaluate.max_rows=3", "evaluate.max_new_tokens=8"]
    settings = Settings(1, repeats=1, passes=1, prompts=(8,), decode_prompt=8, decode_new=4, contexts=())
    overrides = [*rows, 'evaluate.metric="final_number"']
    report = bench([str(tiny_bundle)], settings, overrides=overrides, progress=lambda _: None)
    assert report["data"]["source_rows"] == 1319
    (target,) = report["targets"]
    assert target["score"]["metric"] == "final_number"
    assert target["score"]["value"] == 0.0  # random weights
    assert target["score"]["rows"] + report["data"]["dropped"] == 3
    assert plain(report).splitlines()[1].startswith("same number")
