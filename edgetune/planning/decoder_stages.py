"""What scoring and export of a decoder hold at their peaks: calibration, repair, graph, verification.

In the flow: facts -> bytes by part -> stages.py. Each function names the code that it follows.
"""

from __future__ import annotations

from edgetune.planning.facts import Facts, StageName, with_batch

MIB = 1024**2
UNPACKS = True
"""A small base in 4 bits is unpacked for its answers."""
SESSIONS = 2
"""Of onnxruntime in the process that scores a graph: one answers, one tells losses."""
EXPORT_LIBRARIES_BYTES = 25 * MIB
"""What the run's process has taken on by then: libraries that score, and those that make and run graphs."""
SCALE_NUMBERS, SCALE_NUMBERS_KEPT = 5, 4
"""float32 of a scale under repair: itself, its change, gradient and two of the optimizer; and what each layer keeps."""
COMPARED_COPIES = 12
"""Of the logits that verification compares at a time: of torch and of two sessions, and what is made of them."""


def answered_tokens(facts: Facts) -> int:
    """Of a scored row, prompt and answer."""
    counts, most = facts.scored, facts.recipe.evaluate.max_new_tokens
    return facts.longest(counts) + max(0, most - round(facts.mean(counts, "trained_tokens")))


def most_answered() -> int:
    """Rows at once."""
    from edgetune.evaluate.torch_model import MOST_ROWS

    return MOST_ROWS


def score_parts(facts: Facts, count: int) -> dict[str, int]:
    """Of so many rows at once: logits of a chunk while losses are taken, or distributions that are kept, if more."""
    from edgetune.evaluate.distance import MOST_TOKENS, MOST_VALUES
    from edgetune.train.head_loss import chunk_tokens

    answer = facts.mean(facts.scored, "trained_tokens")
    chunk = 3 * min(count * answer, chunk_tokens(facts.vocabulary))
    kept = 2 * min(facts.scored_rows * answer, MOST_TOKENS, MOST_VALUES // facts.vocabulary)
    return {"logits": round(4 * facts.vocabulary * max(chunk, kept))}


def tried_parts(facts: Facts) -> dict[str, int]:
    """bundle/generation.py, loss_on_grid: a merge on the grid, and a micro-batch of eval rows through its layers."""
    return {**_on_grid(facts), "a layer of the eval rows": _one_layer(facts), "logits": _chunk(facts, copies=2)}


def export_parts(facts: Facts) -> dict[StageName, dict[str, int]]:
    """The stages of an export by name, those alone that the recipe has; empty of one that takes nothing of a GPU."""
    from edgetune.quantize.precisions import PRECISIONS

    table, precision = facts.recipe.export, PRECISIONS[facts.recipe.export.precision]
    is_on_cpu = facts.kind == "cpu"
    found: dict[StageName, dict[str, int]] = {}
    if precision.bits is not None:
        found["calibration"] = calibration_parts(facts) if is_on_cpu else {}
    if precision.has_few_bits and table.repair_steps:
        found["repair"] = repair_parts(facts)
    found["graph"] = graph_parts(facts) if is_on_cpu else {}
    found["verification"] = verification_parts(facts) if is_on_cpu else {}
    return found


def calibration_parts(facts: Facts) -> dict[str, int]:
    """quantize/matrices.py: Hessians, beside what a batch holds in a layer or beside a weight that is rounded."""
    from edgetune.quantize.hessian import BATCH_ROWS, HESSIAN_BYTES
    from edgetune.quantize.methods import method_of
    from edgetune.recipe import CALIBRATED

    parts = {**_process(facts), "matrices on the grid": _packed_bytes(facts)}
    weight = 4 * max(4 * facts.largest, 2 * facts.largest_end)
    if method_of(facts.recipe.export) not in CALIBRATED:
        return {**parts, "a weight": weight}
    inputs = sum(columns**2 for columns in hessian_columns(facts))
    tokens = BATCH_ROWS * facts.longest(facts.rows["train"])
    batch = 4 * tokens * (8 * facts.step.config.hidden_size + 3 * facts.step.mlp_width)
    return {**parts, "Hessians": min(HESSIAN_BYTES, 4 * inputs), "a weight, or a batch": max(weight, batch)}


def hessian_columns(facts: Facts) -> list[int]:
    """Columns of each Hessian; matrices of one input share it."""
    from edgetune.quantize.matrices import joined_with

    names = dict.fromkeys(f"{name}.weight" for name in facts.linears)
    first = dict.fromkeys(joined_with(name, names)[0] for name in names)
    return [facts.linears[name.removesuffix(".weight")][1] for name in first]


def repair_parts(facts: Facts) -> dict[str, int]:
    """quantize/repair.py: the merged model whole on the eval rows, then steps on the grid, whichever is more.

    Out of memory, a GPU goes on with smaller micro-batches, down to one row.
    """
    steps = _repair_steps(facts)
    while facts.kind != "cpu" and sum(steps.values()) > facts.room_bytes and facts.recipe.batch_size > 1:
        facts = with_batch(facts, -(-facts.recipe.batch_size // 2))
        steps = _repair_steps(facts)
    return max((_taught(facts), steps), key=lambda parts: sum(parts.values()))


def _repair_steps(facts: Facts) -> dict[str, int]:
    """Each norm, being trained, keeps what it has normed too. The logits of a chunk are made again on the way back."""
    from edgetune.model.memory import SLACK

    step, is_on_cpu = facts.step, facts.kind == "cpu"
    normed = 2 * 4 * step.tokens * step.config.hidden_size
    is_lean = facts.recipe.gradient_checkpointing
    saved = step.saved_bytes() + (0 if is_lean else normed * facts.layers)
    block = step.block_bytes() + (normed if is_lean else 0) + 4 * 4 * facts.largest
    learned = facts.recipe.export.repair_on != "labels"
    logits = _chunk(facts, copies=6 if learned else 3)
    slack = 0.0 if is_lean else SLACK.get(facts.kind, 0.0)
    scales = 4 * (SCALE_NUMBERS + (0 if is_lean else SCALE_NUMBERS_KEPT)) * _scales(facts)
    teacher = {"teacher": _merged_bytes(facts)} if learned and is_on_cpu else {}
    return {
        **_process(facts),
        **_on_grid(facts),
        **teacher,
        "scales and their optimizer": scales,
        "what the merged model says": _truth(facts) if is_on_cpu else 0,
        "saved activations": saved,
        "largest block": max(block, logits),
        "freed and not given back": round(slack * (saved + step.block_bytes())),
    }


def _taught(facts: Facts) -> dict[str, int]:
    """The merged model, which is put elsewhere where a GPU has no room for it, as it sees the eval rows."""
    parts = {
        **_process(facts),
        "matrices on the grid": _packed_bytes(facts) if facts.kind == "cpu" else 0,
        "merged model": _merged_bytes(facts),
        "what the merged model says": 2 * _truth(facts) if facts.kind == "cpu" else 0,
        "a layer of the eval rows": _one_layer(facts),
        "logits": _chunk(facts, copies=2),
    }
    return parts if facts.kind == "cpu" or sum(parts.values()) <= facts.room_bytes else {}


def graph_parts(facts: Facts) -> dict[str, int]:
    """export/graph.py: a weight at a time."""
    weight = 2 * max(facts.largest, facts.largest_end)
    return {**_process(facts), "a weight": weight}


def verification_parts(facts: Facts) -> dict[str, int]:
    """verify/generation.py: two sessions of the bundle, torch's model, a weight at a time, and a batch of prompts."""
    from edgetune.model.on_device import COPIES
    from edgetune.verify.deviation import BATCH_LOGITS

    weights = facts.bundle.bundle_bytes
    return {
        **_process(facts),
        "two sessions": round(2 * COPIES * weights),
        "a weight": 2 * 4 * max(facts.largest, facts.largest_end),
        "logits": COMPARED_COPIES * 4 * BATCH_LOGITS,
    }


def _process(facts: Facts) -> dict[str, int]:
    """The run's process when an export begins; or a GPU's part of it."""
    libraries = {"more libraries": EXPORT_LIBRARIES_BYTES} if facts.kind == "cpu" else {}
    return {**facts.process_parts, **libraries}


def _on_grid(facts: Facts) -> dict[str, int]:
    """quantize/load.py: the layers' integers in their own bits, embedding and head in float32."""
    return {"matrices on the grid": _packed_bytes(facts), "embedding": 4 * facts.in_ends}


def _packed_bytes(facts: Facts) -> int:
    """The matrices on the grid; those of embedding and head stay on the host."""
    from edgetune.quantize.precisions import PRECISIONS

    table = facts.recipe.export
    bits = PRECISIONS[table.precision].bits or 32
    ends = facts.in_ends * max(bits, table.head_bits) if facts.kind == "cpu" else 0
    return (facts.in_layers * bits + ends) // 8 + 4 * _scales(facts)


def _scales(facts: Facts) -> int:
    """Of the layers' matrices."""
    size = facts.recipe.export.block_size
    return sum(rows * -(-columns // size) for rows, columns in facts.linears.values())


def _merged_bytes(facts: Facts) -> int:
    """The merged model: float32 on a CPU, bfloat16 on a GPU."""
    return facts.parameters * (4 if facts.kind == "cpu" else 2)


def _truth(facts: Facts) -> int:
    """quantize/truth.py: log-probabilities of the merged model at tokens of the eval rows."""
    from edgetune.quantize.truth import MOST_EVAL_ROWS, MOST_TOKENS, MOST_VALUES

    counts = facts.rows.get("eval", facts.rows["train"])
    tokens = MOST_EVAL_ROWS * facts.mean(counts, "trained_tokens")
    return round(4 * facts.vocabulary * min(tokens, MOST_TOKENS, MOST_VALUES // facts.vocabulary))


def _one_layer(facts: Facts) -> int:
    """Of a micro-batch, float32, nothing kept: what is there while a layer runs."""
    return round(4 * facts.step.tokens * (4 * facts.step.config.hidden_size + 3 * facts.step.mlp_width))


def _chunk(facts: Facts, *, copies: int) -> int:
    """Logits of a micro-batch's trained positions, at most of a chunk of them, so many times in float32."""
    from edgetune.train.head_loss import chunk_tokens

    share = 1.0 if facts.recipe.data.loss_on == "all" else facts.trained_share
    return round(copies * 4 * facts.vocabulary * min(chunk_tokens(facts.vocabulary), share * facts.step.tokens))
