"""What each stage of a run holds at its peak, from config.json alone: bytes by part, the parts that are there together.

Training is model/memory.py's; what an export holds differs by task and is in decoder_stages.py and encoder_stages.py.
On a CPU it is resident memory, of the run's process and of the one that scores; on a GPU that GPU's. The formulas
follow the code of the stages; what libraries take is measured (tests/planning/test_stages_measured.py holds them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgetune.planning import decoder_stages, encoder_stages
from edgetune.planning.facts import Facts, StageName
from edgetune.task_names import TaskName

MIB = 1024**2
SCORER_BYTES = 400 * MIB
"""Resident memory of a fresh process with torch and transformers, before it has a model."""
GRAPH_SCORER_BYTES = 124 * MIB
"""Of one without torch, with onnxruntime, onnxruntime-genai and two sessions without weights."""
GRAPH_COPIES = 1.3
"""Bytes in memory of a byte of float weights in a session of onnxruntime."""


class TaskStages(Protocol):
    """What scoring and export of a task hold: a module of functions."""

    UNPACKS: bool
    """Whether a small base in 4 bits is unpacked to be scored."""
    SESSIONS: int
    """Of onnxruntime in a process that scores a graph."""

    def most_answered(self) -> int:
        """Rows that are scored at once."""

    def answered_tokens(self, facts: Facts, /) -> int:
        """Of such a row."""

    def score_parts(self, facts: Facts, count: int, /) -> dict[str, int]:
        """Bytes beside what tokens hold, of so many rows at once."""

    def tried_parts(self, facts: Facts, /) -> dict[str, int]:
        """Bytes of a merge that is tried on the grid."""

    def export_parts(self, facts: Facts, /) -> dict[StageName, dict[str, int]]:
        """The stages of an export by name; empty of one that takes nothing of a GPU that is planned for."""


TASKS: dict[TaskName, TaskStages] = {"generation": decoder_stages, "classification": encoder_stages}
"""By model.task."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run, planned."""

    name: StageName
    parts: Mapping[str, int]
    """Bytes that are there at its peak; none of a stage that a GPU has no part in, where a GPU is planned for."""

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def plan_stages(facts: Facts) -> tuple[Stage, ...]:
    """The stages of a run in their order, those left out that it does not have."""
    exported = _task(facts).export_parts(facts)
    found: dict[StageName, Mapping[str, int]] = {
        "train": facts.training.parts,
        "evaluations": evaluation_parts(facts),
        "merge": merge_parts(facts),
        **exported,
    }
    return tuple(Stage(name, _counted(parts)) for name, parts in found.items())


def largest(stages: tuple[Stage, ...]) -> Stage:
    """The stage with the highest peak."""
    return max(stages, key=lambda stage: stage.peak_bytes)


def evaluation_parts(facts: Facts) -> dict[str, int]:
    """The most of what scoring holds: the fine-tune on its base, the merged model, the float32 graph of the ledger.

    What a GPU has no room for is scored on the CPU.
    """
    candidates = [_tuned(facts), _merged(facts)]
    if facts.kind == "cpu":
        candidates.append(_float_graph(facts))
    else:
        candidates = [parts for parts in candidates if sum(parts.values()) <= facts.room_bytes]
    return max(candidates, key=lambda parts: sum(parts.values()), default={})


def merge_parts(facts: Facts) -> dict[str, int]:
    """A tensor at a time; the adapter; where both bases are tried, a merge on the grid that scores the eval rows."""
    tensors = {**facts.process_parts, "a tensor": 4 * max(4 * facts.largest, facts.largest_end)}
    if facts.kind == "cpu":
        tensors["adapter"] = 4 * facts.adapter
    if facts.recipe.export.merge_base != "auto":
        return tensors
    tried = {**facts.process_parts, **_task(facts).tried_parts(facts)}
    return max((tensors, tried), key=lambda parts: sum(parts.values()))


def answer_parts(facts: Facts, *, taken_bytes: int) -> dict[str, int]:
    """What scored rows hold while they are answered, as many at once as there is room for beside `taken_bytes`."""
    task = _task(facts)
    a_row = facts.token_bytes * task.answered_tokens(facts)
    has_room_for = max(1, (facts.room_bytes - taken_bytes) // max(1, a_row))
    count = min(task.most_answered(), facts.scored_rows, has_room_for)
    return {"tokens read and written": count * a_row, **task.score_parts(facts, count)}


def _tuned(facts: Facts) -> dict[str, int]:
    """The base in 4 bits with the adapter, in a process of its own; small ones unpacked for the answers."""
    from edgetune.model.nf4 import MOST_UNPACKED_BYTES

    parts = {**_scorer(facts), **facts.held, "adapter": 4 * facts.adapter}
    unpacked = facts.item * facts.in_layers
    room = (facts.room_bytes - sum(parts.values())) // 2
    is_packed = facts.recipe.model.quantization == "nf4" and facts.kind == "cpu"
    if is_packed and _task(facts).UNPACKS and unpacked <= min(MOST_UNPACKED_BYTES, room):
        parts["base, unpacked"] = unpacked
    answers = answer_parts(facts, taken_bytes=sum(parts.values()))
    if is_packed:  # while it is put in 4 bits its 16-bit file is there, and as much heap as becomes of it
        loading = 2 * facts.parameters + facts.held["base, linears"]
        answering = sum(answers.values()) + parts.get("base, unpacked", 0)
        answers["loading, beyond the answers"] = max(0, loading - answering)
    return {**parts, **answers}


def _merged(facts: Facts) -> dict[str, int]:
    """The merged model in the type of computation; where that is not the type of its file, both."""
    from edgetune.lora.merge import merged_dtype

    in_file = merged_dtype(facts.parameters).itemsize
    parts = {**_scorer(facts), "merged model": facts.item * facts.parameters}
    answers = answer_parts(facts, taken_bytes=sum(parts.values()))
    if facts.kind == "cpu" and in_file != facts.item:
        answers["loading, beyond the answers"] = max(0, in_file * facts.parameters - sum(answers.values()))
    return {**parts, **answers}


def _float_graph(facts: Facts) -> dict[str, int]:
    """The merged model as a float32 graph, where one is built: a session that answers, and one that tells losses."""
    from edgetune.bundle.variants import MOST_FLOAT_BYTES

    if facts.recipe.export.precision == "fp32" or 4 * facts.parameters > MOST_FLOAT_BYTES:
        return {}
    sessions = _task(facts).SESSIONS
    weights = round(GRAPH_COPIES * sessions * 4 * facts.parameters)
    return {**facts.process_parts, "a process that scores": GRAPH_SCORER_BYTES, "float32 graph": weights}


def _scorer(facts: Facts) -> dict[str, int]:
    """The run's process and the one that scores; of a GPU the context of the latter alone, which is counted."""
    found = facts.process_parts
    return found if facts.kind != "cpu" else {**found, "a process that scores": SCORER_BYTES}


def _task(facts: Facts) -> TaskStages:
    return TASKS[facts.recipe.model.task]


def _counted(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: round(size) for name, size in parts.items() if size > 0}
