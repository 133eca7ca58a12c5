"""The table of numbers in the model card, made from training.json so that the two cannot differ."""

from __future__ import annotations

from pathlib import Path

BEGIN, END = "<!-- numbers: written by export -->", "<!-- end of numbers -->"


def update_card(card: Path, numbers: dict) -> None:
    """Replace what stands between the two markers of the card by the numbers."""
    text = card.read_text("utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    card.write_text(f"{head}{BEGIN}\n{render_numbers(numbers)}{END}{tail}", "utf-8")


def render_numbers(numbers: dict) -> str:
    """Two Markdown tables: the run, then held-out losses beside count-based baselines."""
    decay = "not yet begun: preliminary weights"
    if numbers["decay_started_s"] is not None:
        decay = f"from minute {numbers['decay_started_s'] / 60:.1f}, {numbers['decay_length_s'] / 60:.1f} min long"
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    run = {
        "parameters": f"{numbers['parameters']:,}",
        "steps": f"{numbers['steps']:,}",
        "tokens seen": f"{numbers['tokens']:,} ({numbers['synthetic_share']:.0%} of them synthetic tasks)",
        "natural text": f"{numbers['natural_tokens']:,} tokens read, of texts of {numbers['natural_train_tokens']:,}",
        "training time": f"{numbers['train_wall_s'] / 60:.1f} min on {numbers['hardware']}",
        "learning-rate decay": decay,
        "versions": versions,
    }
    rows = ["| the run | |", "|---|---|", *(f"| {k} | {v} |" for k, v in run.items()), ""]
    rows += ["| held-out natural text | nats/token | bits/byte |", "|---|---:|---:|"]
    for title, name in (("edgetune:nano", "val_natural"), ("bigram counts", "bigram"), ("unigram counts", "unigram")):
        nats, bits = numbers[f"{name}_nats_per_token"], numbers[f"{name}_bits_per_byte"]
        rows.append(f"| {title} | {nats:.3f} | {bits:.3f} |")
    rows += [
        "",
        f"Held out: {numbers['held_out_tokens']:,} tokens, {numbers['held_out_bytes']:,} bytes.",
        f"On held-out synthetic tasks the answers cost {numbers['val_answer_nats_per_token']:.3f} nats/token",
        f"and {numbers['val_answers_exact']:.1%} of them",
        "are right to the last token under greedy decoding.",
    ]
    return "\n".join(rows) + "\n"
