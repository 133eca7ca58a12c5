"""Fills the measured parts of README.md and benchmarks/README.md from results/*.json: no number is typed by hand.

python -m benchmarks.readme            # rewrite
python -m benchmarks.readme --check    # exit 1 if a part differs from its JSON (a test does the same)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.bench_tables import agree_table, page_table
from benchmarks.memory_tables import fused_loss_table, gpu_run_table, gpu_table, planner_table, side_by_side_table
from benchmarks.rounding_tables import int4_loss_table, methods_table, repair_table
from benchmarks.tuned import tune_table

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = (REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md")


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a page is out of date.")
def main(check: bool) -> None:
    """Rewrite the measured parts of both pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text and check:
            raise click.ClickException(f"{page.name} differs from benchmarks/results; run python -m benchmarks.readme")
        page.write_text(filled, encoding="utf-8")


def fill(text: str, results: Path = RESULTS, *, absent: str | None = None) -> str:
    """The page with each part between `<!-- begin NAME -->` and `<!-- end NAME -->` made anew.

    `absent` stands where a part has no result; without it that is a FileNotFoundError.
    """
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if pattern.search(text):
            file = results / f"{name}.json"
            is_absent = absent is not None and not file.exists()
            body = absent if is_absent else part(json.loads(file.read_text(encoding="utf-8")))
            text = pattern.sub(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)
    return text


def run_table(summary: dict[str, Any]) -> str:
    """The table of a run, and what the run cost."""
    machine = summary["provenance"]
    return (
        f"{summary['markdown']}\n\n"
        f"{summary['rows']} test rows, {summary['confidence']:.0%} bootstrap intervals; "
        f"{summary['wall_s'] / 60:.1f} minutes and {summary['peak_bytes'] / 1024**3:.2f} GiB at the peak "
        f"on {machine['cores']} cores of {machine['processor']}."
    )


def train_table(report: dict[str, Any]) -> str:
    """Training speed, peers side by side."""
    lines = ["| trainer | trained tokens/s | peak memory | eval loss |", "| --- | ---: | ---: | ---: |"]
    for name, row in report["contestants"].items():
        speed = row["trained_tokens_per_s"]
        lines.append(
            f"| {name} | {speed['median']:,.0f} ({speed['least']:,.0f} to {speed['most']:,.0f}) "
            f"| {row['peak_bytes']['median'] / 2**20:,.0f} MiB | {row['eval_loss']['median']:.4f} |"
        )
    ratio = report["ratio"]
    lines.append("")
    lines.append(
        f"Median ratio to {report['peer']}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) over "
        f"{report['rounds']} rounds of {report['rows']} rows in turn, on {report['provenance']['cores']} cores of "
        f"{report['provenance']['processor']}."
    )
    return "\n".join(lines)


def decode_table(report: dict[str, Any]) -> str:
    """Decode speed, peers side by side."""
    lines = [
        "| runtime | decode tokens/s | x Q4_K_M | prefill tokens/s | peak memory | file | share of bandwidth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["rows"].items():
        lines.append(
            f"| {name} | {row['decode_tokens_per_s']['median']:,.0f} | "
            f"{report['decode_ratio_to_q4_k_m'][name]['median']:.2f} | {row['prefill_tokens_per_s']['median']:,.0f} | "
            f"{row['peak_bytes'] / 2**20:,.0f} MiB | {row['file_bytes'] / 2**20:,.1f} MiB | "
            f"{row['share_of_bandwidth']:.0%} |"
        )
    lines.append("")
    lines.append(
        f"Batch 1, prompt {report['prompt_tokens']}, {report['new_tokens']} new tokens, median of "
        f"{report['rounds']} rounds in turn, {report['threads']} threads of "
        f"{report['provenance']['processor']}; memory read at "
        f"{report['read_bandwidth_bytes_per_s']['best'] / 1e9:.1f} GB/s."
    )
    return "\n".join(lines)


def keep_adapter_table(report: dict[str, Any]) -> str:
    """Decode speed of a base with its adapter beside it, against the merged bundle."""
    lines = [
        "| bundle | decode tokens/s | x merged | prefill tokens/s | peak memory | graph | adapter |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["rows"].items():
        decode, ratio = row["decode_tokens_per_s"], row["decode_tokens_per_s_ratio_to_merged"]
        size = report["merged_bytes" if name == "merged" else "base_bytes"]
        adapter = f"{report['adapter_bytes'] / 2**20:.1f} MiB" if name == "adapter active" else "-"
        lines.append(
            f"| {name} | {decode['median']:,.0f} ({decode['least']:,.0f} to {decode['most']:,.0f}) "
            f"| {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) "
            f"| {row['prefill_tokens_per_s']['median']:,.0f} | {row['peak_bytes']['median'] / 2**20:,.0f} MiB "
            f"| {size / 2**20:.1f} MiB | {adapter} |"
        )
    lines += [
        "",
        f"{report['base']}, rank {report['adapter']['r']} on {len(report['adapter']['target_modules'])} projections a "
        f"layer; batch 1, prompt {report['prompt_tokens']}, {report['new_tokens']} new tokens, median of "
        f"{report['rounds']} rounds in turn, {report['threads']} threads of {report['provenance']['processor']}; load "
        f"average {report['load_at_start']:.1f} at the start, {report['load_at_end']:.1f} at the end.",
    ]
    return "\n".join(lines)


def busy_table(report: dict[str, Any]) -> str:
    """Work by its way of waiting: time on an idle machine, and how much slower beside others."""
    lines = ["| work | waiting | idle | beside one | beside two |", "| --- | --- | ---: | ---: | ---: |"]
    for name, row in report["rows"].items():
        work, _, way = name.partition(", ")
        idle = row["seconds"]["0"]
        cells = [f"{idle['median'] * 1e3:,.1f} ms ({idle['least'] * 1e3:,.1f} to {idle['most'] * 1e3:,.1f})"]
        cells += [f"{row['slower'][count]:.1f} x" for count in ("1", "2")]
        lines.append(f"| {work} | {way} | {' | '.join(cells)} |")
    machine = report["provenance"]
    lines += [
        "",
        f"Median of {report['rounds']} rounds in turn, on {machine['cores']} cores of {machine['processor']}.",
    ]
    return "\n".join(lines)


def banking77_table(report: dict[str, Any]) -> str:
    """Accuracy over seeds, with all rows and with few."""
    names = list(next(iter(report["rows_a_label"].values()))["accuracy"])
    lines = [
        f"| training rows a label | {' | '.join(names)} | int4 - merged, points | calibration error | bundle |",
        "| --- |" + " ---: |" * (len(names) + 3),
    ]
    for rows, found in report["rows_a_label"].items():
        cells = [f"{_percent(found['accuracy'][name])}" for name in names]
        lost = found["int4_minus_merged"]
        error = f"{found['ece']['mean']:.3f}" if found["ece"] else "-"
        lines.append(
            f"| {rows} | {' | '.join(cells)} | {lost['mean'] * 100:+.2f} | {error} "
            f"| {found['bundle_bytes'] / 2**20:.1f} MiB |"
        )
    whole = report["rows_a_label"]["all"]
    lines += [
        "",
        f"Accuracy on the 3,080 test rows: mean of {report['seeds']['all']} seeds with all rows, of "
        f"{report['seeds']['few']} seeded draw(s) of few (least to most). With all rows a run took "
        f"{whole['wall_s']['mean'] / 60:.0f} minutes in {report['threads']} thread of "
        f"{report['provenance']['processor']}, training {whole['train_peak_bytes'] / 2**30:.2f} GiB. "
        "Few-shot epochs and learning rate were chosen on other labelled rows of the training split; the drawn rows "
        "are the eval rows too, so that in effect the last checkpoint is kept and a calibration error means nothing.",
    ]
    return "\n".join(lines)


def sms_spam_table(report: dict[str, Any]) -> str:
    """F1 of spam over seeds."""
    lines = ["| model | F1 of spam |", "| --- | ---: |"]
    lines += [f"| {name} | {_percent(found)} |" for name, found in report["f1"].items()]
    split = ", ".join(f"{part} {sum(rows.values()):,} ({rows['spam']} spam)" for part, rows in report["split"].items())
    least, most = report["f1_interval"]
    lines += [
        "",
        f"Mean of {report['seeds']} seeds (least to most); 95% bootstrap interval of the first int4 bundle {least:.1%} "
        f"to {most:.1%}. Rows: {split}; split seed {report['split_seed']}, copies of a text in the same part. The "
        f"bundle has {report['bundle_bytes'] / 2**20:.1f} MiB, accuracy {report['accuracy']['mean']:.1%}, "
        f"calibration error {report['ece']['mean']:.3f}.",
    ]
    return "\n".join(lines)


def classify_throughput_table(report: dict[str, Any]) -> str:
    """Training speed of classifiers, peers side by side."""
    lines = ["| trainer | rows/s | peak memory | accuracy |", "| --- | ---: | ---: | ---: |"]
    for name, row in report["contestants"].items():
        speed = row["rows_per_s"]
        lines.append(
            f"| {name} | {speed['median']:,.0f} ({speed['least']:,.0f} to {speed['most']:,.0f}) "
            f"| {row['peak_bytes']['median'] / 2**20:,.0f} MiB | {row['accuracy']['median']:.1%} |"
        )
    ratio, rows = report["ratio"], next(iter(report["contestants"].values()))["rows"]["median"]
    lines += [
        "",
        f"Median ratio to {report['peer']}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) over "
        f"{report['rounds']} rounds of {rows:,.0f} rows in turn, in {report['compute_dtype']} on "
        f"{report['provenance']['cores']} cores of {report['provenance']['processor']}; the "
        f"{report['contestants']['edgetune']['imprint_s']['median']:.1f} s in which EdgeTune starts its head count; "
        f"accuracy on {report['data_rows']['eval']:,} other rows of the training split.",
    ]
    return "\n".join(lines)


def encoder_speed_table(report: dict[str, Any]) -> str:
    """Latency, throughput, memory and size of a classifier in every form."""
    lines = [
        "| model | one text | 95th percentile | x eager | texts/s in batches | peak memory | on disk | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in report["rows"].items():
        if row is None:
            lines.append(f"| {name} |{' - |' * 7}")
            continue
        lines.append(
            f"| {name} | {row['median_s']['median'] * 1e3:.1f} ms | {row['p95_s']['median'] * 1e3:.1f} ms "
            f"| {report['latency_ratio_to_eager'][name]['median']:.1f} | {row['texts_per_s']['median']:,.0f} "
            f"| {row['peak_bytes']['median'] / 2**20:,.0f} MiB | {row['file_bytes'] / 2**20:.1f} MiB "
            f"| {row['agreement']['median']:.1%} |"
        )
    lines += [
        "",
        f"Median of {report['rounds']} rounds in turn, {report['provenance']['cores']} cores of "
        f"{report['provenance']['processor']}; tokenizer included, in time and on disk, the same library for all. Peak "
        f"memory is that of labelling single texts. Plain ONNX has {report['plain_onnx_attention']} attention. "
        "Agreement: the share of the batched texts that get the label that PyTorch eager gives them.",
    ]
    return "\n".join(lines)


def _percent(found: dict[str, Any]) -> str:
    """Mean and range; the mean alone where there is one value, or all are equal."""
    spread = f" ({found['least']:.2%} to {found['most']:.2%})" if found["least"] < found["most"] else ""
    return f"{found['mean']:.2%}{spread}"


def snips_tries_table(report: dict[str, Any]) -> str:
    """Eval loss of each try at about the same shares of its steps."""
    lines = ["| tried | settings | eval loss (train loss) by share of the steps |", "| --- | --- | --- |"]
    for item in report["tries"]:
        steps = item["planned_steps"]
        points = [f"{step / steps:.0%}: {found:.4f} ({train:.4f})" for step, found, train in item["curve"][1::2]]
        lines.append(f"| {item['name']} | {item['settings']} | {', '.join(points)} |")
    return "\n".join(lines)


def survival_table(report: dict[str, Any]) -> str:
    """One table a task: what each way to the device keeps of the fine-tune."""
    found = []
    for task, values in report["tasks"].items():
        found += [
            f"**{task}**",
            "",
            "| on the device | score | gain kept | of the loss | KL | file | bits a weight | peak memory | tokens/s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_survival_row(row) for row in values["rows"]),
            "",
        ]
    machine = report["provenance"]
    return "\n".join(
        [
            *found,
            "Gain kept: (it - base) / (fine-tune - base) on the same test rows, 95% paired bootstrap interval. KL: "
            "nats a token from the fine-tune's probabilities. Each in a fresh process, one after the other, on "
            f"{machine['cores']} cores of {machine['processor']}.",
        ]
    )


def _survival_row(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['name']} | {row['failed']} | - | - | - | - | - | - | - |"
    score = "-" if row["score"] is None else f"{row['score']:.1%}"
    if row["interval"]:
        score += f" ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
    kl = "-" if row["kl"] is None else f"{row['kl']:.4f}"
    speed = "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}"
    return (
        f"| {row['name']} | {score} | {_gain(row['gain_kept_score'])} | {_gain(row['gain_kept_loss'])} | {kl} "
        f"| {row['file_bytes'] / 2**20:.2f} MiB | {row['bits_per_weight']:.1f} "
        f"| {row['peak_bytes'] / 2**20:,.0f} MiB | {speed} |"
    )


def _gain(gain: dict[str, Any] | None) -> str:
    if gain is None or gain["kept"] is None:
        return "-"
    low, high = gain["interval"]
    return f"{gain['kept']:.3f} ({low:.3f} to {high:.3f})"


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "quickstart": run_table,
    "nano-snips": run_table,
    "train_throughput": train_table,
    "busy": busy_table,
    "decode": decode_table,
    "decode_nano": decode_table,
    "keep_adapter": keep_adapter_table,
    "int4_loss": int4_loss_table,
    "methods": methods_table,
    "repair": repair_table,
    "banking77": banking77_table,
    "sms_spam": sms_spam_table,
    "classify_throughput": classify_throughput_table,
    "encoder_speed": encoder_speed_table,
    "survival": survival_table,
    "snips_tries": snips_tries_table,
    "gpu": gpu_table,
    "gpu_run": gpu_run_table,
    "planner": planner_table,
    "fused_loss": fused_loss_table,
    "side_by_side": side_by_side_table,
    "tune": tune_table,
    "agree": agree_table,
    "page": page_table,
}

if __name__ == "__main__":
    main()
