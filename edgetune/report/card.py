"""The model card of an adapter and of a bundle: README.md in its folder, with the metadata that the hub reads.

A card is no part of what a folder is: it is in no hash and no manifest, and may be edited. One without the line that
says who wrote it is the user's own, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgetune.files import write_text
from edgetune.hashes import CARD
from edgetune.progress import Progress
from edgetune.report.card_facts import Subject, adapter_subject, bundle_subject
from edgetune.report.columns import Column, columns, is_first
from edgetune.report.facts import Model
from edgetune.report.formats import as_plain, table
from edgetune.run_dir import RunDir

MARK = "<!-- Written by EdgeTune, which writes it anew; without this line the text is yours and stays. -->"
HUB_METRICS = {
    "exact_match": "exact_match",
    "json": "exact_match",
    "final_number": "exact_match",
    "check": "pass@1",
    "token_f1": "f1",
    "rouge_l": "rouge",
    "chrf": "chrf",
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "f1": "f1",
    "loss": "loss",
}
"""Metric -> what the hub calls it."""
BRACKETS = "In brackets: bootstrap intervals, of a speed the range between prompts."


def write_cards(run_dir: RunDir, *, progress: Progress | None = None) -> list[Path]:
    """Write the cards of what a run folder holds: adapter, bundle, adapter-bundle; the files that were written.

    What goes wrong is told through `progress` and stops nothing: the models are there without their cards.
    """
    makers: dict[Path, Callable[[], Subject]] = {
        run_dir.adapter: lambda: adapter_subject(run_dir),
        run_dir.bundle: lambda: bundle_subject(run_dir.bundle, run_dir),
        run_dir.adapter_bundle: lambda: bundle_subject(run_dir.adapter_bundle, run_dir),
    }
    return [card for folder, make in makers.items() if folder.is_dir() and (card := _attempt(folder, make, progress))]


def write_bundle_card(folder: Path, run_dir: RunDir | None, *, progress: Progress | None = None) -> Path | None:
    """Write the card of a bundle that was made of a run, or of none; as `write_cards`."""
    return _attempt(folder, lambda: bundle_subject(folder, run_dir), progress)


def card_text(subject: Subject) -> str:
    """A card: YAML between lines of ---, then Markdown."""
    sections = [_what(subject), _use(subject), _scores(subject), _sizes(subject), _training(subject), _limits(subject)]
    sections += [_licence(subject), _origin(subject)]
    body = "\n".join(line for section in sections for line in section)
    return f"---\n{header(subject)}\n---\n{MARK}\n{body}\n"


def header(subject: Subject) -> str:
    """The hub's metadata as YAML: base_model, library_name, license, tags, datasets, metrics, model-index.

    Source: huggingface.co/docs/hub/model-cards. What is not known is not there.
    """
    from huggingface_hub import ModelCardData

    is_adapter, words = subject.kind == "adapter", subject.words
    results = _results(subject)
    tags = ["edgetune", "lora"] if is_adapter else ["edgetune", "onnx"]
    if subject.bundle is not None:
        tags += [subject.bundle.precision, *words.opened_by]
    data: dict[str, Any] = {
        "base_model": subject.base if subject.base_is_on_hub else None,
        "base_model_relation": ("adapter" if is_adapter else "quantized") if subject.base_is_on_hub else None,
        "library_name": "peft" if is_adapter else "onnx",
        "license": subject.base_licence,
        "pipeline_tag": words.hub_task,
        "tags": tags,
        "datasets": sorted({name for name in subject.data.values() if _is_hub_name(name)}) or None,
        "metrics": sorted({result.metric_type for result in results}) or None,
        "model_name": subject.name if results else None,
        "eval_results": results or None,
    }
    return str(ModelCardData(**{key: value for key, value in data.items() if value is not None}).to_yaml()).strip()


def _attempt(folder: Path, make: Callable[[], Subject], progress: Progress | None) -> Path | None:
    card = folder / CARD
    try:
        if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
            return None
        write_text(card, card_text(make()))
    except Exception as error:
        if progress:
            progress({"stage": "card", "message": f"{card}: not written: {type(error).__name__}: {error}"})
        return None
    return card


def _own(subject: Subject) -> Model | None:
    """The measured model that the card is of."""
    stage = "tuned" if subject.kind == "adapter" else "bundle"
    return next((model for model in subject.models if model.stage == stage), None)


def _results(subject: Subject) -> list[Any]:
    from huggingface_hub import EvalResult

    model = _own(subject)
    if model is None:
        return []
    kinds = [item for item in _columns(subject) if item.kind in ("score", "loss")]
    where = subject.scored_on or "the user's own rows"
    return [
        EvalResult(
            task_type=subject.words.hub_task,
            dataset_type=where,
            dataset_name=where,
            metric_type=HUB_METRICS.get(item.key.rpartition(".")[2], item.key.rpartition(".")[2]),
            metric_name=item.title,
            metric_value=round(model.values[item.key].value, 6),
        )
        for item in kinds
        if item.key in model.values
    ]


def _columns(subject: Subject) -> list[Column]:
    return [item for item in columns(subject.models) if is_first(item)]


def _is_hub_name(name: str) -> bool:
    return "/" in name


def _what(subject: Subject) -> Iterator[str]:
    yield f"# {as_plain(subject.name)}"
    yield ""
    base = f"`{subject.base}`" if subject.base else "a base that is not recorded"
    kind = subject.words.kind
    if subject.bundle is None:
        held = " in 4 bits" if subject.record.get("quantization") == "nf4" else ""
        yield f"A LoRA adapter for {base}, a {kind}, trained with EdgeTune on the base{held}."
    elif subject.bundle.adapters:
        names = ", ".join(f"`{name}`" for name in subject.bundle.adapters)
        yield f"{base} as an {subject.bundle.precision} ONNX bundle for the device, with adapters beside it: {names}."
    else:
        yield f"A fine-tune of {base}, a {kind}, as an {subject.bundle.precision} ONNX bundle that runs without torch."
    if subject.bundle is not None and (abilities := subject.words.abilities(subject.bundle)):
        yield from ("", as_plain(abilities))


def _use(subject: Subject) -> Iterator[str]:
    words = subject.words
    yield from ("", "## Use", "")
    if subject.bundle is None:
        yield from _fenced("python", *_loading(subject, words.auto_class))
        yield from ("", words.folded)
        return
    yield from _fenced("sh", "pip install edgetune", words.command)
    yield ""
    yield from _fenced("python", *words.python)
    for library in words.opened_by:
        yield from ("", f"It is a folder that plain {library} opens, too.")


def _loading(subject: Subject, auto: str) -> Iterator[str]:
    """How an adapter is put on its base in Python."""
    base = f'"{subject.base}"'
    if not subject.base_is_on_hub and ":" in subject.base:
        base = 'resolve_base("edgetune:nano")'
        yield "from edgetune.model.base import resolve_base"
    yield "from peft import PeftModel"
    yield f"from transformers import {auto}"
    yield ""
    yield f'model = PeftModel.from_pretrained({auto}.from_pretrained({base}), "path/to/this/folder")'


def _fenced(language: str, *lines: str) -> Iterator[str]:
    yield from (f"```{language}", *lines, "```")


def _scores(subject: Subject) -> Iterator[str]:
    yield from ("", "## Scores")
    shown = _columns(subject)
    if _own(subject) is None:
        yield from ("", "Not measured yet.")
        return
    yield from table(["model"], [([model.name], model.values) for model in subject.models], shown)
    rows = next((model.rows for model in subject.models if model.rows is not None), None)
    count = f"{rows:,} rows" if rows is not None else "Rows"
    yield ""
    yield f"{count} of {as_plain(subject.scored_on or 'the data below')}. {BRACKETS}"
    gain = (subject.bundle.verified.get("gain_kept") or {}) if subject.bundle else {}
    for name in ("score", "loss"):
        found = gain.get(name) or {}
        if isinstance(found.get("kept"), float):
            yield f"Of the fine-tune's gain in {name} {found['kept']:.1%} came through to this bundle."
    close = gain.get("closeness") or {}
    if isinstance(close.get("kl"), float):
        yield f"Its next-token probabilities are {close['kl']:.4f} nats a token from the fine-tune's."
    if isinstance(close.get("changed_rows"), float):
        yield f"Of the rows {close['changed_rows']:.1%} are right with one of the two and wrong with the other."


def _sizes(subject: Subject) -> Iterator[str]:
    yield from ("", "## Sizes", "")
    files = sorted(item for item in subject.folder.rglob("*") if item.is_file() and item.name != CARD)
    yield "| file | bytes |"
    yield "| --- | ---: |"
    for file in files:
        yield f"| {as_plain(file.relative_to(subject.folder).as_posix())} | {file.stat().st_size:,} |"
    yield ""
    if subject.bundle is None:
        record = subject.record
        yield f"Rank {record.get('r')}, alpha {record.get('lora_alpha')}, on {_targets(record.get('target_modules'))}."
    elif (grid := subject.bundle.grid) is not None:
        kind = "symmetric" if grid.symmetric else "asymmetric"
        yield f"Weights in {grid.bits} bits, blocks of {grid.block_size}, {kind}; the head in {grid.head_bits} bits."


def _targets(value: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(map(str, value))) if isinstance(value, list) else f"`{value}`"


def _training(subject: Subject) -> Iterator[str]:
    yield from ("", "## Training", "")
    for name, source in subject.data.items():
        yield f"- {name} data: {as_plain(source)}"
    counts = subject.counts
    if isinstance(counts.get("train_rows"), int):
        trained = counts.get("trained_tokens")
        tokens = f", {trained:,} trained tokens" if isinstance(trained, int) else ""
        yield f"- {counts['train_rows']:,} rows{tokens}, as {as_plain(str(counts.get('format', 'rows')))}"
    if subject.base:
        yield f"- base: {as_plain(subject.base)}" + ("" if subject.base_is_on_hub else ", not from the hub")
    if subject.recipe:
        recipe = _fenced("toml", subject.recipe.strip())
        yield from ("", "<details><summary>Recipe</summary>", "", *recipe, "", "</details>")


def _limits(subject: Subject) -> Iterator[str]:
    yield from ("", "## Limits", "")
    bundle, words = subject.bundle, subject.words
    if bundle is not None:
        yield f"- At most {bundle.context_length:,} tokens, {words.length}."
        passed = bundle.verified.get("passed")
        if passed is not True:
            yield f"- {'It failed' if passed is False else 'It has not passed'} EdgeTune's verification."
        if refusals := words.refusals(bundle):
            yield f"- {refusals}"
    yield "- The scores hold for rows like those above; on other texts, languages and tasks nothing was measured."
    yield "- Neither safety nor bias was measured. It inherits both from its base and its data."
    yield "- Memory and speed are those of the machine below."


def _licence(subject: Subject) -> Iterator[str]:
    yield from ("", "## Licence", "")
    if subject.base_licence:
        yield f"The base's own card says `{subject.base_licence}`. The licence of the data holds as well."
    else:
        yield "Not stated: those of the base and of the data hold. Name it as `license` in the header of this card."


def _origin(subject: Subject) -> Iterator[str]:
    yield from ("", "## Where it comes from", "")
    record = subject.provenance
    facts = {
        "EdgeTune": " ".join(str(record[key]) for key in ("edgetune", "commit") if record.get(key)),
        "seed": record.get("seed"),
        "machine": record.get("processor"),
        "versions": ", ".join(f"{name} {version}" for name, version in dict(record.get("packages") or {}).items()),
    }
    if subject.bundle is not None:
        facts["recipe, SHA-256"] = record.get("recipe_sha256")
    for name, value in facts.items():
        if value not in (None, ""):
            yield f"- {name}: {as_plain(str(value))}"
