"""The export of a base with its adapter beside it: run folder -> bundle of base and adapter, or an adapter more in one.

The bundle's graph is the base on the grid with inputs for an adapter; the adapter is a file of its own, which can be
replaced without the rest. So nothing is merged, and the base's weights are rounded for the run's rows but not
repaired: they must serve adapters that come later.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetune.bundle.generation import are_conversations, build_bundle, training_rows, verified_prompts
from edgetune.bundle.place import ExportResult, put_in_place, refused
from edgetune.data.read import on_disk
from edgetune.errors import BundleError, ModelError, RecipeError, RunError
from edgetune.export.adapter_inputs import add_branches, branch_arrays, check_adapter, find_branches, write_adapter
from edgetune.export.architecture import check_architecture
from edgetune.files import atomic_file
from edgetune.hashes import hash_file, hash_values
from edgetune.lora.merge import MergeBase, write_base
from edgetune.lora.read import CONFIG, HELD, WEIGHTS, Adapter, read_adapter
from edgetune.model.base import hash_base, load_tokenizer
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.model.weights import find_tensors, hash_files
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import (
    GRAPH,
    MANIFEST,
    NO_ADAPTER,
    AdapterRecord,
    Bundle,
    FileRecord,
    adapter_file,
    check_hashes,
    choose_adapter,
    open_bundle,
    write_manifest,
)
from edgetune.verify.adapter import Kept, verify_adapter, verify_kept
from edgetune.verify.checks import Verification
from edgetune.verify.generation import Prompt

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export_adapter(
    recipe: Recipe,
    run_dir: RunDir,
    base: Path,
    *,
    out: Path | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Build runs/x/adapter-bundle (or `out`) from the base in folder `base` and runs/x/adapter, and verify it.

    `name`: of the adapter in the bundle, the run folder's by default. Raises as `export` does, and ModelError for an
    adapter that cannot stand beside the base.
    """
    tell = progress or silent
    name, grid = check_name(name or run_dir.path.resolve().name), grid_of(recipe.export)
    out = out or run_dir.adapter_bundle
    check_architecture(base)
    if grid is None:
        raise RecipeError(
            f'export.precision = "{recipe.export.precision}": an adapter is kept beside a base on the grid only',
            cure='use "int4" or "int8"',
        )
    adapter = _read(run_dir, base)
    if out.exists() and not force:
        raise RunError(f"{out}: there is something already", cure="replace it with --force, add to it with --into")
    prompts = verified_prompts(recipe)
    recipe = dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, repair_steps=0))

    def make(folder: Path) -> tuple[Bundle, Verification]:
        with _base_folder(adapter, base, out, _merge_base(recipe)) as held:
            tell({"stage": "export", "message": f"putting the base on the {recipe.export.precision} grid"})
            rows = training_rows(held, recipe, run_dir.cache)
            quantized = quantize_decoder(held, held.parent / "grid", recipe, grid, rows=rows, progress=progress)
            tell({"stage": "export", "message": f"building {recipe.export.precision} with inputs for the adapter"})
            bundle, tokenizer = build_bundle(
                held, folder, recipe, is_chat=are_conversations(prompts), quantized=quantized
            )
            arrays = branch_arrays(add_branches(folder / GRAPH, find_tensors(held), adapter.pairs), adapter)
            write_adapter(folder / adapter_file(name), arrays)
            made = dataclasses.replace(
                bundle,
                files={},  # measured again
                adapters={name: AdapterRecord(_adapter_provenance(recipe, adapter))},
                adapter=name,
                provenance=_base_provenance(bundle, recipe, adapter, base),
            )
            bundle = write_manifest(made)
            tell({"stage": "export", "message": f"verifying on {len(prompts)} prompts"})
            kept = Kept(bundle, adapter, arrays, held, tokenizer)
            verification = verify_kept(kept, prompts, quantized=quantized)
            return _with_verified(bundle, name, verification), verification

    return put_in_place(out, (run_dir.adapter, base, *on_disk(recipe.data)), make)


def add_adapter(
    recipe: Recipe,
    run_dir: RunDir,
    base: Path,
    path: Path,
    *,
    name: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Write the adapter of another run of the same base into the bundle at `path`, verified first; the rest stays.

    The bundle goes on answering with the adapter it was made with. Raises BundleError for a bundle that is damaged or
    takes no adapters, ModelError for an adapter of another base or with other projections, RunError for one of that
    name in place without `force`, CheckError, with the bundle untouched, for one that does not hold.
    """
    start_s = time.perf_counter()
    reset_peak()
    tell = progress or silent
    name = check_name(name or run_dir.path.resolve().name)
    if not path.exists():
        raise BundleError(f"{path}: no such bundle", cure="`edgetune export-adapter RUN` makes one, without --into")
    bundle = open_bundle(path)
    _check_takes(bundle, recipe, base, name=name, force=force)
    adapter, prompts = _read(run_dir, base), verified_prompts(recipe)
    _check_format(bundle, recipe, prompts)
    check_hashes(bundle)
    stands = bundle.provenance["base_held"]
    alike = dataclasses.replace(adapter, record={**adapter.record, **stands["record"]})
    with _base_folder(alike, base, path, stands["merge_base"]) as held, _copied(bundle) as folder:
        arrays = branch_arrays(find_branches(folder / GRAPH, find_tensors(held)), adapter)
        file = folder / adapter_file(name)
        file.unlink(missing_ok=True)  # a link to the old one
        write_adapter(file, arrays)
        record = AdapterRecord(_adapter_provenance(recipe, adapter))
        tried = dataclasses.replace(bundle, path=folder, adapters={**bundle.adapters, name: record})
        tell({"stage": "export", "message": f"verifying on {len(prompts)} prompts"})
        kept = Kept(choose_adapter(tried, name), adapter, arrays, held, load_tokenizer(held))
        verification = verify_adapter(kept, prompts)
        if not verification.passed:
            raise refused(verification, f"the adapter failed its verification; {path} is as it was")
        added = _with_verified(tried, name, verification)
        bundle = _put_in(bundle, added, file)
    return ExportResult(bundle, verification, bundle.size_bytes, peak_memory_bytes(), time.perf_counter() - start_s)


def check_name(name: str) -> str:
    """The name of an adapter, if it can be a file's. Raises RecipeError."""
    if name == NO_ADAPTER:
        raise RecipeError(f"{name!r} means the base alone", cure="choose another name with --name")
    if not NAME.fullmatch(name):
        raise RecipeError(f"{name!r} cannot be an adapter's name", cure="give letters, digits, . _ - with --name")
    return name


def _read(run_dir: RunDir, base: Path) -> Adapter:
    """The run's adapter, if it can stand beside the base."""
    adapter = read_adapter(run_dir.adapter, base)
    check_adapter(adapter)
    return adapter


def _merge_base(recipe: Recipe) -> MergeBase:
    """The numbers of the base that go on the grid: those in training, also for "auto", which compares merges."""
    return "original" if recipe.export.merge_base == "original" else "trained"


@contextmanager
def _base_folder(adapter: Adapter, base: Path, out: Path, merge_base: MergeBase) -> Iterator[Path]:
    """The base as a Hugging Face folder, in a folder beside `out` that vanishes."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".base", dir=out.parent) as kept:
        write_base(adapter, base, Path(kept) / "base", merge_base=merge_base)
        yield Path(kept) / "base"


@contextmanager
def _copied(bundle: Bundle) -> Iterator[Path]:
    """The bundle's files in a folder beside it that vanishes; linked where the file system can."""
    with tempfile.TemporaryDirectory(prefix=f".{bundle.path.name}.", dir=bundle.path.parent) as folder:
        for name in bundle.files:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(bundle.path / name, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(bundle.path / name, target)
        yield Path(folder)


def _put_in(bundle: Bundle, added: Bundle, file: Path) -> Bundle:
    """Copy the adapter's file into the bundle and list it."""
    with atomic_file(bundle.path / file.name) as temporary:
        shutil.copyfile(file, temporary)
    files = {**bundle.files, file.name: FileRecord(file.stat().st_size, hash_file(file))}
    return write_manifest(dataclasses.replace(added, path=bundle.path, files=files, adapter=bundle.adapter))


def _check_takes(bundle: Bundle, recipe: Recipe, base: Path, *, name: str, force: bool) -> None:
    """Raises BundleError, ModelError or RunError if the bundle cannot take an adapter of this base by that name."""
    if not bundle.adapters or "base_held" not in bundle.provenance:
        raise BundleError(
            f"{bundle.path}: takes no adapters: it is a merged model's bundle",
            cure="`edgetune export-adapter RUN` makes one that takes them, of the same base",
        )
    if bundle.provenance.get("base_sha256") != hash_base(base):
        raise ModelError(
            f"{bundle.path / MANIFEST}: its base is {bundle.provenance.get('base')} with other weights than {base}",
            cure=f"the run must be one of that base; this is one of {recipe.model.base}",
        )
    if name in bundle.adapters and not force:
        raise RunError(
            f"{bundle.path}: has an adapter {name} already",
            cure="replace it with --force, or choose another name with --name",
        )


def _check_format(bundle: Bundle, recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises RecipeError if training rendered its prompts in another way than the bundle does."""
    system = recipe.data.system if are_conversations(prompts) else None
    if bundle.chat_format.system != system or (bundle.chat_format.template is not None) != are_conversations(prompts):
        raise RecipeError(
            f"{bundle.path}: renders prompts otherwise than this run's training (system message, or plain text)",
            cure="train with the data.system of the bundle's first run, or export into a bundle of its own",
        )


def _adapter_provenance(recipe: Recipe, adapter: Adapter) -> dict[str, Any]:
    return {
        "adapter_sha256": hash_files([adapter.folder / WEIGHTS, adapter.folder / CONFIG]),
        "recipe_sha256": hash_values(recipe),
        **provenance(recipe.train.seed),
    }


def _base_provenance(bundle: Bundle, recipe: Recipe, adapter: Adapter, base: Path) -> dict[str, Any]:
    """Of a bundle that holds a base: which one, and how it was held before it was rounded."""
    held = {key: adapter.record[key] for key in HELD if key in adapter.record and key not in ("base", "revision")}
    kept = {key: value for key, value in bundle.provenance.items() if key not in ("merged_sha256", "repair")}
    stands = {"merge_base": _merge_base(recipe), "record": held}
    return {**kept, "base_sha256": hash_base(base), "base_held": stands}


def _with_verified(bundle: Bundle, name: str, verification: Verification) -> Bundle:
    record = dataclasses.replace(bundle.adapters[name], verified=verification.to_json())
    return dataclasses.replace(bundle, adapters={**bundle.adapters, name: record})
