"""A merged decoder -> a bundle: graph, tokenizer, settings, how messages become text and when an answer ends.

What export knows of the task "generation": see bundle/task.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from edgetune.bundle.layer_changes import layers_changed
from edgetune.bundle.place import ExportResult, put_in_place
from edgetune.bundle.settings import write_settings
from edgetune.data.chat import chat_template, end_ids, ensure_chat_template, special_tokens
from edgetune.data.encode import Encoded, encode_batch
from edgetune.data.prepare import examples, prepare
from edgetune.data.read import on_disk
from edgetune.export.architecture import check_architecture
from edgetune.export.decoder import build_decoder
from edgetune.hashes import hash_tree, hash_values
from edgetune.lora.merge import BaseTensors
from edgetune.lora.read import read_record
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.config import context_length
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.hessian import Rows
from edgetune.quantize.layer_change import LayerChange
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.precisions import grid_of
from edgetune.quantize.repair import longer
from edgetune.quantize.truth import EvalRows
from edgetune.recipe import Recipe, TrainTable
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import Bundle, ChatFormat, write_manifest
from edgetune.train.loss import use_segments
from edgetune.verify.checks import Verification
from edgetune.verify.generation import MOST_ANSWERED, MOST_PROMPTS, Prompt, verify

KIND = "decoder"
IS_DECODER = True


def check_merged(merged: Path) -> None:
    """Raises ModelError for an architecture that cannot be exported."""
    check_architecture(merged)


def as_trained(recipe: Recipe, merged: Path) -> Recipe:  # noqa: ARG001
    """The recipe as it is: a decoder's folder says nothing that a recipe does."""
    return recipe


def export(merged: Path, out: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None) -> ExportResult:
    """The bundle `out` of a merged decoder: rounded and repaired on train rows, verified on prompts of eval rows."""
    rows = training_rows(merged, recipe, cache) if recipe.export.needs_rows else None
    prompts, answered = verified_prompts(recipe), answered_rows(merged, recipe)
    return export_folder(merged, out, recipe, prompts=prompts, rows=rows, answered=answered, progress=progress)


def export_folder(
    merged: Path,
    out: Path,
    recipe: Recipe,
    *,
    prompts: Sequence[Prompt],
    rows: Rows | None = None,
    answered: Sequence[Encoded] = (),
    progress: Progress | None = None,
) -> ExportResult:
    """The bundle `out` of any Hugging Face folder, verified on `prompts` and `answered`; with `rows`, repaired on them.

    Raises as `export` does.
    """
    tell = progress or silent
    is_chat = are_conversations(prompts)

    def make(folder: Path) -> tuple[Bundle, Verification]:
        grid, quantized = grid_of(recipe.export), None
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".grid", dir=out.parent) as kept:
            if grid is not None:
                tell({"stage": "export", "message": f"putting the weights on the {recipe.export.precision} grid"})
                quantized = quantize_decoder(merged, Path(kept) / "grid", recipe, grid, rows=rows, progress=progress)
                if found := unconverged(quantized.record.get("repair"), recipe.train):
                    tell({"stage": "export", "message": found})
            tell({"stage": "export", "message": f"building {recipe.export.precision}"})
            bundle, tokenizer = build_bundle(merged, folder, recipe, is_chat=is_chat, quantized=quantized)
            tell({"stage": "export", "message": f"verifying on {len(prompts)} prompts"})
            return bundle, verify(bundle, merged, prompts, tokenizer=tokenizer, quantized=quantized, answered=answered)

    return put_in_place(out, (merged, *on_disk(recipe.data)), make)


def unconverged(repair: Mapping[str, Any] | None, table: TrainTable) -> str | None:
    """What to tell of a fine-tune that had not converged, by what repair found; None of one that had."""
    if repair is None or not repair["epochs_more"]:
        return None
    step, loss, _ = min(repair["curve"], key=lambda look: look[1])
    return (
        f"the fine-tune had not converged: {step} steps of repair alone bring its eval loss from "
        f"{repair['loss_merged']:.4f} to {loss:.4f}. The bundle is what was measured, and no more; train longer: "
        f"--set {longer(table, repair['epochs_more'])}"
    )


def build_again(bundle: Bundle, merged: Path, folder: Path, recipe: Recipe) -> Bundle:
    """The decoder of `bundle` once more, as another recipe asks, weights rounded to the nearest; not verified."""
    return build_bundle(merged, folder, recipe, is_chat=bundle.chat_format.template is not None)[0]


def as_exported(merged: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None) -> Any:
    """The merged decoder in torch with the numbers that its bundle would hold: rounded and repaired as by `export`."""
    grid = grid_of(recipe.export)
    if grid is None:
        return load_merged(merged)
    rows = training_rows(merged, recipe, cache) if recipe.export.needs_rows else None
    with tempfile.TemporaryDirectory(prefix=f".{merged.name}.", suffix=".grid", dir=merged.parent) as kept:
        made = quantize_decoder(merged, Path(kept) / "grid", recipe, grid, rows=rows, progress=progress)
        model = load_on_grid(merged, made, rounds_inputs=grid.accuracy_level == 4, vectors=made.vectors)
    model.config._attn_implementation = "sdpa"
    return model


def row_losses(model: Any, merged: Path, recipe: Recipe, *, cache: Path) -> list[tuple[float, int]]:
    """What a model in torch loses on each eval row: nats, and the trained tokens that they are the sum over."""
    use_segments(model)
    rows = training_rows(merged, recipe, cache)
    return EvalRows.of(rows.prepared, recipe, rows.pad_id).row_losses(model)


def layer_changes(bundle: Bundle, run_dir: RunDir, base: Path) -> Iterator[LayerChange]:
    """What became of the fine-tune in each matrix of a run's bundle, on the base that it was merged on."""
    merge_base = read_record(run_dir.merged).get("merge_base", "trained")
    return layers_changed(bundle, run_dir.merged, BaseTensors(run_dir.adapter, base, merge_base))


def training_rows(merged: Path, recipe: Recipe, cache: Path) -> Rows:
    """The recipe's rows in the tokens of the merged folder's tokenizer. Raises DataError."""
    tokenizer = load_tokenizer(merged)
    return Rows(prepare(recipe, tokenizer, cache=cache), padding_id(tokenizer))


def verified_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts that a bundle is verified on: of the eval rows, and of the train rows where those are few."""
    return prompts_of(islice(chain(examples(recipe, "eval"), examples(recipe, "train")), MOST_PROMPTS))


def answered_rows(merged: Path, recipe: Recipe) -> list[Encoded]:
    """Rows with their answers, as the folder's tokenizer has them in training; the answers alone are learned."""
    tokenizer = load_tokenizer(merged)
    ensure_chat_template(tokenizer)
    rows = islice(chain(examples(recipe, "eval"), examples(recipe, "train")), MOST_ANSWERED)
    found = encode_batch(list(rows), tokenizer, loss_on="completion")
    return [row for row in found if row.trained_tokens]


def are_conversations(prompts: Sequence[Prompt]) -> bool:
    """Whether prompts are conversations, which the chat template renders, and none is plain text."""
    return not any(isinstance(prompt, str) for prompt in prompts)


def build_bundle(
    merged: Path, folder: Path, recipe: Recipe, *, is_chat: bool, quantized: QuantizedFolder | None = None
) -> tuple[Bundle, Any]:
    """Write a bundle, not verified yet, into an empty folder; the bundle and the tokenizer of training.

    `quantized`: the weights on the grid; without it each is rounded as it is written.
    """
    config = check_architecture(merged)
    tokenizer = load_tokenizer(merged)
    if is_chat and tokenizer.chat_template is None:
        ensure_chat_template(tokenizer)
    table = recipe.export
    grid, length = grid_of(table), context_length(config, table)
    chat = chat_format(tokenizer, merged, is_chat=is_chat, system=recipe.data.system)
    options: dict[str, Any] = {"max_length": table.max_length, "eos_ids": chat.eos_ids}
    build_decoder(merged, folder, precision=table.precision, grid=grid, quantized=quantized, **options)
    tokenizer.save_pretrained(folder)
    write_settings(folder, chat=chat, context_length=length)
    bundle = Bundle(
        path=folder,
        name=recipe.name,
        precision=table.precision,
        grid=grid,
        chat=chat,
        context_length=length,
        provenance={
            "base": recipe.model.base,
            "merged_sha256": hash_tree(merged),
            "recipe_sha256": hash_values(recipe),
            "method": quantized.record.get("method") if quantized else None,
            "repair": quantized.record.get("repair") if quantized else None,
            **provenance(recipe.train.seed),
        },
    )
    return write_manifest(bundle), tokenizer


def chat_format(tokenizer: Any, merged: Path, *, is_chat: bool, system: str | None) -> ChatFormat:
    """How training rendered its prompts and ended its answers, from the tokenizer and generation_config.json.

    Raises ModelError if nothing says when to stop.
    """
    eos_ids = end_ids(tokenizer, merged, is_chat=is_chat)
    template = chat_template(tokenizer).source if is_chat else None
    for_tools = chat_template(tokenizer, has_tools=True).source if is_chat else None
    named = special_tokens(tokenizer, f"{template}{for_tools}") if is_chat else {}
    return ChatFormat(
        template=template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        bos_id=tokenizer.bos_token_id,
        eos_ids=eos_ids,
        system=system if is_chat else None,
        special_tokens={name: token for name, token in named.items() if name not in ("bos_token", "eos_token")},
        tool_template=for_tools if for_tools != template else None,
    )


def prompts_of(examples: Iterable[Any]) -> list[Prompt]:
    """Each example up to its last answer: the conversation, or the text where there is none."""
    prompts: list[Prompt] = []
    for example in examples:
        turns = example.turns
        if turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        if turns and example.tools:
            prompts.append({"messages": turns, "tools": example.tools})
        elif turns or example.text:
            prompts.append(turns or str(example.text))
    return prompts
