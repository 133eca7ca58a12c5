"""What scoring and export of a classifier hold at their peaks: rounding and graph, which are one stage; verification.

In the flow: facts -> bytes by part -> stages.py. Each function names the code that it follows.
"""

from __future__ import annotations

from edgetune.planning.facts import Facts, StageName

MIB = 1024**2
UNPACKS = False
SESSIONS = 1
EXPORTER_BYTES = 180 * MIB
"""What torch's exporter and onnxscript take in the run's process, their work on a graph of a dozen layers included."""
GRAPH_COPIES = 3
"""Of the float weights while torch exports them: the model's, and two of the graph that is made."""


def most_answered() -> int:
    """Texts at once."""
    from edgetune.evaluate.torch_labeller import BATCH_TEXTS

    return BATCH_TEXTS


def answered_tokens(facts: Facts) -> int:
    """Of a text."""
    return facts.longest(facts.scored)


def score_parts(_facts: Facts, _count: int) -> dict[str, int]:
    """Nothing to speak of: a text has one logit a label."""
    return {}


def tried_parts(facts: Facts) -> dict[str, int]:
    """bundle/classification.py, loss_on_grid: the merged classifier, its weights on the grid as floats, and a batch."""
    return {"merged model": 4 * facts.parameters, "on the grid": 4 * facts.parameters, "a batch": _batch(facts)}


def export_parts(facts: Facts) -> dict[StageName, dict[str, int]]:
    """The stages of an export by name; empty of all that takes nothing of a GPU."""
    from edgetune.quantize.precisions import PRECISIONS

    has_grid = PRECISIONS[facts.recipe.export.precision].bits is not None
    made = [graph_parts(facts), *([rounding_parts(facts)] if has_grid else [])]
    found: dict[StageName, dict[str, int]] = {
        "graph": max(made, key=lambda parts: sum(parts.values())),
        "verification": verification_parts(facts),
    }
    return {name: parts if facts.kind == "cpu" else {} for name, parts in found.items()}


def rounding_parts(facts: Facts) -> dict[str, int]:
    """quantize/classification.py: the classifier in float32, Hessians of all its linears, and a weight or a batch."""
    from edgetune.quantize.hessian import HESSIAN_BYTES
    from edgetune.quantize.methods import method_of
    from edgetune.recipe import CALIBRATED

    hessians = 0
    if method_of(facts.recipe.export) in CALIBRATED:
        hessians = min(HESSIAN_BYTES, 4 * sum(columns**2 for _, columns in facts.linears.values()))
    weight = 4 * 4 * max(facts.largest, facts.largest_end // 2)
    return {
        **facts.process_parts,
        "merged model": 4 * facts.parameters,
        "Hessians": hessians,
        "matrices on the grid": facts.bundle.bundle_bytes,
        "a weight, or a batch": max(weight, _batch(facts)),
    }


def graph_parts(facts: Facts) -> dict[str, int]:
    """export/encoder.py: torch's exporter, the weights that stay float, and those on the grid."""
    return {
        **facts.process_parts,
        "exporter": EXPORTER_BYTES,
        "merged model": 4 * facts.parameters,
        "graph": GRAPH_COPIES * facts.bundle.bundle_bytes,
    }


def verification_parts(facts: Facts) -> dict[str, int]:
    """verify/classification.py: the merged classifier, another with the numbers of the grid, two sessions."""
    from edgetune.model.on_device import COPIES

    return {
        **facts.process_parts,
        "exporter": EXPORTER_BYTES,
        "merged model": 4 * facts.parameters,
        "on the grid": 4 * facts.parameters,
        "two sessions": round(2 * COPIES * facts.bundle.bundle_bytes),
    }


def _batch(facts: Facts) -> int:
    """A batch of texts in a layer, float32."""
    from edgetune.bundle.classification import BATCH_TEXTS

    step, tokens = facts.step, BATCH_TEXTS * facts.longest(facts.rows["train"])
    return 4 * tokens * (8 * step.config.hidden_size + 3 * step.mlp_width)
