"""Who may import whom: the table of the design, read from the source of every module.

| layer | modules | third-party at module top | may import |
|---|---|---|---|
| 0 words | errors, recipe, files, figure, progress, text_table, task_names, ... threads | none | layer 0 |
| 1 device | runtime | jinja2, numpy, onnxruntime, tokenizers | 0, 1 |
| 2 parts | data, model, lora, quantize, assets | and torch, transformers, peft, safetensors | 0 to 2 |
| 2 parts, too | evaluate.{metrics, text_metrics, resample, gain, closeness, ...} | the same | same |
| 3 graphs | export | and onnx_ir | 0 to 3 |
| 4 proof | verify | the same | 0 to 4 |
| 5 stages | quantize.{decoder, repair, truth}, train, ... | and accelerate, optuna, ray | 0 to 5; public parts |
| 6 shell | pipeline, plan, plan_checks, planning, ..._run, cli | click | 0 at module top, the rest inside a function |
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgetune"
LAYERS = {
    0: (
        "errors",
        "figure",
        "recipe",
        "run_dir",
        "files",
        "hashes",
        "lock",
        "provenance",
        "process_memory",
        "child_process",
        "threads",
        "launch",
        "metric_names",
        "progress",
        "text_table",
        "precision_names",
        "task_names",
        "__init__",
    ),
    1: ("runtime",),
    2: (
        "data",
        "model",
        "lora",
        "quantize",
        "assets",
        "evaluate.metrics",
        "evaluate.text_metrics",
        "evaluate.resample",
        "evaluate.gain",
        "evaluate.closeness",
        "evaluate.calibration",
        "evaluate.label_metrics",
        "evaluate.rejection",
    ),
    3: ("export",),
    4: ("verify",),
    5: (
        "quantize.decoder",
        "quantize.repair",
        "quantize.repair_classifier",
        "quantize.truth",
        "train",
        "tune",
        "bundle",
        "evaluate",
        "bench",
        "report",
    ),
    6: (
        "pipeline",
        "run_state",
        "run_scores",
        "run_summary",
        "plan",
        "plan_checks",
        "planning",
        "adapt_run",
        "adapt_scores",
        "search_run",
        "verify_run",
        "cli",
        "__main__",
    ),
}
DEVICE = {"jinja2", "numpy", "onnxruntime", "tokenizers"}
PARTS = DEVICE | {"torch", "transformers", "peft", "safetensors"}
GRAPHS = PARTS | {"onnx_ir"}
THIRD_PARTY = {
    0: set(),
    1: DEVICE,
    2: PARTS,
    3: GRAPHS,
    4: GRAPHS,
    5: GRAPHS | {"accelerate", "optuna", "ray"},
    6: {"click"},
}
STAGES, SHELL = 5, 6
PUBLIC = {
    "train": {
        "train.events.read_events",
        "train.loop.train",
        "train.fit",
        "train.divergence.Diverged",
        "train.loss",
        "train.generation.Generation",
        "train.classification.Classification",
        "train.schedule",
        "train.setup.count_steps",
        "train.stop",
    },
    "bundle": {"bundle.export.export", "bundle.task.TASKS", "bundle.merge_base.choose_merge_base"},
    "quantize": {
        "quantize.decoder.quantize_decoder",
        "quantize.repair",
        "quantize.repair_classifier",
        "quantize.truth.EvalRows",
    },
    "evaluate": {
        "evaluate.evaluate.evaluate",
        "evaluate.labeller.calibrate_for",
        "evaluate.ledger",
        # bench measures what evaluate scores
        "evaluate.evaluate.Target",
        "evaluate.target",
        "evaluate.task",
        "evaluate.by_path",
        "evaluate.texts",
        "evaluate.torch_model",
        "evaluate.rows",
        "evaluate.targets",
        "evaluate.live",
        "evaluate.torch_labeller",
    },
    # what stages measure and are shown with
    "report": {"report.measure", "report.table", "report.confusion", "report.figures", "report.columns"},
}
"""What a stage offers to the other stages."""


@dataclass(frozen=True)
class Import:
    """One imported name: `module` as far as it is a module of ours, else the third-party package."""

    module: str
    name: str
    line: int
    is_top: bool
    """Runs when the importing module is imported."""


def test_every_module_has_a_layer() -> None:
    assert {module for module in modules() if layer(module) is None} == set()


def test_no_module_imports_from_a_layer_above() -> None:
    assert [
        f"{module}:{item.line} (layer {layer(module)}) imports {item.module} (layer {layer(item.module)})"
        for module, item in ours()
        if layer(item.module) > layer(module)
    ] == []


def test_third_party_packages_stand_at_module_top_only_where_the_table_allows() -> None:
    found = []
    for module in modules():
        for item in imports(module):
            package = item.module.partition(".")[0]
            is_third_party = package != "edgetune" and package not in sys.stdlib_module_names
            if item.is_top and is_third_party and package not in THIRD_PARTY[layer(module)]:
                found.append(f"{module}:{item.line} imports {package}")
    assert found == []


def test_the_shell_imports_nothing_but_words_at_module_top() -> None:
    assert [
        f"{module}:{item.line} imports {item.module}"
        for module, item in ours()
        if layer(module) == SHELL and item.is_top and layer(item.module) in range(1, SHELL)
    ] == []


def test_a_stage_uses_of_another_stage_only_what_is_public() -> None:
    found = []
    for module, item in ours():
        mine, theirs = module.partition(".")[0], item.module.partition(".")[0]
        is_public = PUBLIC.get(theirs, set()) & {item.module, f"{item.module}.{item.name}"}
        if layer(module) == layer(item.module) == STAGES and mine != theirs and not is_public:
            found.append(f"{module}:{item.line} imports {item.module}.{item.name}")
    assert found == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for module, item in ours():
        graph[module].add(item.module)
    assert circle(graph) == []


def test_packages_are_empty_so_that_importing_a_part_costs_only_that_part() -> None:
    """But for `edgetune.recipe`: one thing to its users, read whole wherever it is read, the standard library alone."""
    found = []
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE and path.parent.name not in ("cli", "recipe"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            if any(not isinstance(statement, ast.Expr) for statement in body):
                found.append(str(path.relative_to(PACKAGE)))
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn", [("torch.nn", True)]),
        ("def f():\n    import torch", [("torch", False)]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", [("torch", True)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing", True)]),
        ("class A:\n    import torch\n    def f(self):\n        import peft", [("torch", True), ("peft", False)]),
    ],
)
def test_the_reader_knows_which_imports_run_when_a_module_is_imported(source: str, expected: list) -> None:
    assert [(item.module, item.is_top) for item in walk(ast.parse(source), is_top=True)] == expected


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c", "b"]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name without `edgetune.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def layer(module: str) -> int | None:
    """The layer of a module, by its longest prefix in the table."""
    names = [(len(name), number) for number, group in LAYERS.items() for name in group if within(module, name)]
    return max(names)[1] if names else None


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return tuple(walk(tree, is_top=True))


def ours() -> Iterator[tuple[str, Import]]:
    """(importing module, import) for every import from the package itself, `edgetune.` left out."""
    for module in modules():
        for item in imports(module):
            name = item.module.removeprefix("edgetune").lstrip(".") or "__init__"
            if item.module.partition(".")[0] == "edgetune":
                yield module, Import(name, item.name, item.line, item.is_top)


def walk(node: ast.AST, *, is_top: bool) -> Iterator[Import]:
    """Every import below a node; what only a type checker reads is no import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, "", child.lineno, is_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            yield from (from_import(child.module or "", alias.name, child.lineno, is_top) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, is_top=is_top and not is_function)


def from_import(module: str, name: str, line: int, is_top: bool) -> Import:
    """`from a import b` imports module a.b where there is one."""
    if f"{module}.{name}".removeprefix("edgetune.") in modules():
        return Import(f"{module}.{name}", "", line, is_top)
    return Import(module, name, line, is_top)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, its first one again at the end; [] if there is none."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for following in sorted(graph.get(path[-1], ())):
            if following in path:
                return [*path[path.index(following) :], following]
            if following not in done and (found := search([*path, following])):
                return found
        done.add(path[-1])
        return []

    return next((found for module in graph if module not in done and (found := search([module]))), [])
