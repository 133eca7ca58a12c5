"""Tables of what was measured of memory: results/gpu.json and results/planner.json, for benchmarks.readme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {
    "gradient_checkpointing": "checkpointing",
    "offload_activations": "offload",
    "fused_loss": "fused loss",
    "train.gradient_checkpointing": "checkpointing",
    "train.fused_loss": "fused loss",
    "train.optimizer": "optimizer",
    "model.embedding_quantization": "embeddings in",
    "train.batch_size": "micro-batch",
    "train.gradient_accumulation_steps": "accumulation",
}
"""Of keys in a table's cells."""


def gpu_table(report: dict[str, Any]) -> str:
    """What a GPU did: correctness, claims, the Trainer beside EdgeTune, small cards, recovery, the planner."""
    hardware, (losses,), (layers,) = report["hardware"], report["losses"], report["layers"]
    recovery, planned = report["recovery"][0], report["planned"]
    return "\n".join(
        [
            f"On one {hardware['device']}, torch {hardware['torch']}, bitsandbytes {hardware['bitsandbytes']}; random "
            f"weights; the median of {report['steps']} steps beside other trainers, {report['few_steps']} elsewhere. "
            f"Losses of a training differ from the CPU's by at most {losses['largest']:.1g} nats over "
            f"{len(losses['cpu'])} steps; outputs of {layers['layers']} NF4 layers by at most "
            f"{layers['largest_difference']:.1g}; {_attention(report['attention'][0])}",
            "",
            "| base | sequences x tokens | settings | trainer | peak memory | tokens/s |",
            "| --- | ---: | --- | --- | ---: | ---: |",
            *(_gpu_row(row, "EdgeTune") for row in report["headlines"]),
            *(_gpu_row(row, row["trainer"]) for row in report["trainers"]),
            "",
            "Recipes that `--fit` made of 8 sequences of 2,048 tokens, run under the limit of a card:",
            "",
            "| card | base | changed | planned | peak memory | tokens/s |",
            "| ---: | --- | --- | ---: | ---: | ---: |",
            *(_card_row(row) for row in _by_card(report)),
            "",
            f"Asked for micro-batches of {recovery['asked']['batch_size']} under {recovery['asked']['gpu_memory']}, a "
            f"training went on with {recovery['batch_size']} and ended all {recovery['steps']} steps. The planner, on "
            f"{planned['rows']} configurations: {planned['within_10_percent']} within 10 %, planned over measured "
            f"{planned['least']:.2f} to {planned['most']:.2f}.",
        ]
    )


def gpu_run_table(report: dict[str, Any]) -> str:
    """The ledger of a whole run on a GPU."""
    hardware, kept = report["hardware"], report["gain_kept"]
    lines = [
        f"`edgetune run recipes/quickstart.toml` on one {hardware['device']} with {hardware['cores']} cores: "
        f"{report['minutes']:.1f} minutes, {report['train_peak_mib']} MiB of the GPU in training; {kept['score']:.1%} "
        f"of the gain in score kept ({kept['score_interval'][0]:.1%} to {kept['score_interval'][1]:.1%}), "
        f"{kept['loss']:.1%} of that in loss.",
        "",
        "| step | same JSON | loss | KL to the fine-tune | same answers |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['stage']} | {row['score']:.1%} | {row['loss']:.4f} | {row['kl']:.5f} | {row['same_answers']:.1%} |"
        for row in report["ledger"]
    ]
    return "\n".join(lines)


def _attention(found: dict[str, Any]) -> str:
    """Of samples packed in one sequence, against each sample's own attention in float32."""
    kernel = "FlashAttention" if found["is_flash"] else "attention without FlashAttention"
    return f"{kernel} inside packed samples by at most {max(found['causal'], found['windowed']):.1g}."


def _gpu_row(row: dict[str, Any], trainer: str) -> str:
    return (
        f"| {row['shape']} | {row['batch']} x {row['tokens']:,} | {_settings(row)} | {trainer} "
        f"| {row['peak_mib']:,.0f} MiB | {row['tokens_per_s']:,.0f} |"
    )


def _by_card(report: dict[str, Any]) -> Iterable[dict[str, Any]]:
    failed = [row for row in report["errors"] if row["section"] == "cards"]
    return sorted([*report["cards"], *failed], key=lambda row: row["card_gib"])


def _card_row(row: dict[str, Any]) -> str:
    start = f"| {row['card_gib']} GiB | {row['shape']} |"
    if "error" in row:
        return f"{start} ran out of memory | - | - | - |"
    return (
        f"{start} {_changes(row['changed'])} | {row['predicted_mib']:,.0f} MiB | {row['peak_mib']:,.0f} MiB "
        f"| {row['tokens_per_s']:,.0f} |"
    )


def planner_table(report: dict[str, Any]) -> str:
    """Planned and measured peaks on the CPU."""
    lines = ["| base | settings | planned | measured | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in report["rows"]:
        where = f"{row['train.batch_size']} x {row['data.max_seq_len']:,}, rank {row['lora.r']}"
        others = _settings({key.partition(".")[2]: value for key, value in row.items()})
        lines.append(
            f"| {row['shape']} | {where}{', ' + others if others != '-' else ''} | {row['planned_mib']:,.0f} MiB "
            f"| {row['peak_mib']:,.0f} MiB | {row['planned_mib'] / row['peak_mib']:.2f} |"
        )
    summary = report["summary"]
    too_low = sum(row["planned_mib"] < 0.95 * row["peak_mib"] for row in report["rows"])
    lines += [
        "",
        f"{summary['within_10_percent']} of {summary['rows']} within 10 %; planned over measured "
        f"{summary['least']:.2f} to {summary['most']:.2f}; {too_low} more than 5 % too low. Peaks are resident "
        "memory, each training in a process.",
    ]
    return "\n".join(lines)


def _settings(row: dict[str, Any]) -> str:
    """What differs from the defaults, in words."""
    words = [NAMES[key] for key in ("gradient_checkpointing", "offload_activations") if row.get(key)]
    words += [f"rank {row['rank']}"] if "rank" in row else []
    words += [row["optimizer"]] if "optimizer" in row else []
    words += ["no fused loss"] if row.get("fused_loss") is False else []
    words += ["base not quantised"] if row.get("quantization") == "none" else []
    words += [f"embeddings in {row['embedding_quantization']}"] if "embedding_quantization" in row else []
    words += [f"dropout {row['dropout']}"] if row.get("dropout") else []
    return ", ".join(words) or "-"


def _changes(values: dict[str, Any]) -> str:
    words = [
        NAMES.get(key, key) if value is True else f"{NAMES.get(key, key)} {value}" for key, value in values.items()
    ]
    return ", ".join(words) or "-"


def fused_loss_table(report: dict[str, Any]) -> str:
    """The loss fused with the head beside the plain one."""
    lines = [
        f"{report['positions']:,} positions of {report['hidden']} numbers, forward and backward, float32; seconds of a "
        f"core; medians of {report['rounds']} rounds in turn (least to most).",
        "",
        "| vocabulary | memory, fused | memory, plain | times less | seconds, fused | seconds, plain | times faster |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['vocabulary']:,} | {row['fused_mib']['median']:,.0f} MiB | {row['plain_mib']['median']:,.0f} MiB "
            f"| {_spread(row['times_less_memory'])} | {row['fused_s']['median']:.2f} | {row['plain_s']['median']:.2f} "
            f"| {_spread(row['times_faster'])} |"
        )
    losses = max(row["loss_difference"] for row in report["rows"])
    gradients = max(row["gradient_difference"] for row in report["rows"])
    lines += ["", f"Losses differ by at most {losses:.1g} of themselves, norms of the gradient by {gradients:.1g}."]
    return "\n".join(lines)


def side_by_side_table(report: dict[str, Any]) -> str:
    """Adapters side by side beside as many trainings, and whether that is what was asked for."""
    count, rows = report["adapters"], report["rows"]
    lines = [
        f"| base | micro-batch | steps | {count} runs | side by side | times faster | in training steps "
        "| memory, one run | side by side | times the memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['base']} | {row['batch_size']} x {row['max_seq_len']} | {row['steps']} "
            f"| {count * row['alone_wall_s']['median']:.0f} s | {row['beside_wall_s']['median']:.0f} s "
            f"| {_spread(row['times_faster'])} | {_spread(row['times_faster_in_steps'])} "
            f"| {_mib(row['alone_peak_bytes'])} | {_mib(row['beside_peak_bytes'])} "
            f"| {_spread(row['times_the_memory'])} |"
        )
    faster = sum(row["times_faster"]["median"] >= 2 for row in rows)
    in_steps = sum(row["times_faster_in_steps"]["median"] >= 2 for row in rows)
    lean = sum(row["times_the_memory"]["median"] <= 2 for row in rows)
    difference = max(row["largest_loss_difference"] for row in rows)
    lines += [
        "",
        f"Medians of {' and '.join(map(str, sorted({row['rounds'] for row in rows})))} rounds in turn (least to most), "
        f"with other work on the machine's other core, on one of "
        f"{report['provenance']['processor']}. At most 2 times the memory of one run: {lean} of {len(rows)}. At least "
        f"2 times faster than {count} runs, each a process that starts and loads the base: {faster} of {len(rows)}; in "
        f"training steps alone: {in_steps} of {len(rows)}. Eval losses differ by at most {difference:.1g}.",
    ]
    return "\n".join(lines)


def _mib(found: dict[str, float]) -> str:
    return f"{found['median'] / 2**20:,.0f} MiB"


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def stages_table(report: Mapping[str, Any]) -> str:
    """One row a case and stage."""
    rows = ["| model | stage | seconds | planned | MiB | planned |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name, case in report["cases"].items():
        for stage, row in case["stages"].items():
            cells = (row["seconds"], row["planned_seconds"], row["mib"], row["planned_mib"])
            shown = ["-" if cell is None else f"{cell:,.0f}" for cell in cells]
            rows.append(f"| {name} | {stage} | {' | '.join(shown)} |")
    notes = [
        f"{name} ({case['parameters'] / 1e6:,.0f} million parameters): {case['recipe']}"
        + (f", {', '.join(case['settings'])}" if case["settings"] else "")
        + (f"; {case['note']}" if case["note"] else "")
        + f"; load average {case['load_at_start']:.1f} at the start, on {case['provenance']['cores']} cores of "
        f"{case['provenance']['processor']}, at commit {case['provenance']['commit'][:7]}."
        for name, case in report["cases"].items()
    ]
    return "\n".join([*rows, "", *notes])
