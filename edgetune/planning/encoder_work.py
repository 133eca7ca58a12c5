"""How long scoring and export of a classifier take, about, by seconds that were measured on two cores of one x86-64."""

from __future__ import annotations

from edgetune.planning.decoder_work import ROUND_S, SEARCH_S
from edgetune.planning.facts import StageName
from edgetune.planning.work import GRAPH_PROCESS_S, PROCESS_S, Work

EXPORTER_S = 12.0
"""In which torch exports an encoder of a few layers, and for each more of them."""
EXPORTED_LAYER_S = 0.6
VERIFY_S = 3.0


def scoring_s(work: Work) -> float:
    """Of fine-tune, merged model and bundle on the scored and the eval rows, and the ledger's graphs."""
    rows = work.scored_rows + work.eval_rows
    tokens = rows * work.facts.mean(work.facts.scored)
    graphs = 3 * (GRAPH_PROCESS_S + work.forward_s(tokens, is_float=True))
    return 2 * (PROCESS_S + work.forward_s(tokens)) + graphs


def export_s(work: Work) -> dict[StageName, float]:
    """Of each stage of the export that stages.py knows of."""
    from edgetune.quantize.methods import method_of
    from edgetune.recipe import CALIBRATED
    from edgetune.verify.classification import MOST_TEXTS

    facts, table = work.facts, work.facts.recipe.export
    mean, columns = facts.mean(facts.rows["train"]), [columns for _, columns in facts.linears.values()]
    rounding = SEARCH_S * (facts.in_ends + facts.in_layers)
    if method_of(table) in CALIBRATED:
        tokens = min(table.calibration_rows, work.train_rows) * mean
        sums = 2 * tokens * sum(count**2 for count in columns) + sum(count**3 for count in columns)
        rounding = SEARCH_S * facts.in_ends + ROUND_S * facts.in_layers
        rounding += work.forward_s(tokens, is_float=True) + sums / work.machine.float_flops
    scored = work.forward_s(work.eval_rows * facts.mean(facts.scored), is_float=True)
    return {
        "graph": rounding + EXPORTER_S + EXPORTED_LAYER_S * facts.layers + scored,
        "verification": VERIFY_S + 4 * work.forward_s(MOST_TEXTS * mean, is_float=True),
    }
