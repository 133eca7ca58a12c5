"""How long scoring and export of a decoder take, about. Seconds a weight were measured on two cores of one x86-64."""

from __future__ import annotations

import math

from edgetune.planning.decoder_stages import answered_tokens, hessian_columns, most_answered
from edgetune.planning.facts import StageName
from edgetune.planning.work import GRAPH_PROCESS_S, PROCESS_S, Work

LAYER_S = 6e-4
"""Of a layer's operators for a batch of tokens in torch, however few the tokens are."""
SPEED_S = 3.0
"""In which decoding of single prompts is measured."""
LONGEST_ANSWER = 1.5
"""Of a batch, in mean answers."""
ROUND_S, SEARCH_S = 4e-7, 1.2e-7
"""Of a weight that is rounded for its inputs (gptq), and by itself."""
UNPACK_S = 4e-9
"""Of a weight that is brought back from the grid for a product."""
LOOKS = 5
"""Of repair at the eval rows, before its first step too."""
WRITE_S = 1e-8
"""Of a weight that goes into a graph, and is hashed."""
VERIFY_S = 3.0
"""Of a verification's small models, tokenizers and sessions."""
EXACT_SLOWER = 3.0
"""A graph whose activations are not rounded, beside the bundle."""


def scoring_s(work: Work) -> float:
    """Of base, fine-tune, merged model and bundle on the scored rows, and the ledger's graphs on some of them."""
    from edgetune.run_scores import VARIANT_ROWS

    facts, rows = work.facts, work.scored_rows
    counts = facts.scored
    few = min(rows, VARIANT_ROWS)
    writes = facts.recipe.evaluate.metric != "loss"
    answer = facts.mean(counts, "trained_tokens") if writes else 0.0
    read = facts.mean(counts) + (facts.mean(counts) - answer if writes else 0.0)
    losses = work.forward_s(rows * read) + work.head_s(rows * facts.mean(counts, "trained_tokens"))
    seconds = 3 * (PROCESS_S + SPEED_S + losses)
    if writes:
        most = facts.recipe.evaluate.max_new_tokens
        seconds += 2 * _decoding_s(work, min(most, LONGEST_ANSWER * answer)) + _decoding_s(work, most)
    token_s = 1 / facts.bundle.tokens_per_s(work.machine.read_bytes)
    graph_s = work.forward_s(read, is_float=True) + answer * token_s
    return seconds + 3 * (GRAPH_PROCESS_S + SPEED_S) + graph_s * (rows + few * (1 + EXACT_SLOWER))


def _decoding_s(work: Work, tokens: float) -> float:
    """Of the scored rows in torch, a batch of them at a time until its longest answer ends."""
    facts, batches = work.facts, math.ceil(work.scored_rows / most_answered())
    rows = work.scored_rows / max(1, batches)
    read_s = facts.item * (facts.in_layers + facts.largest_end) / work.machine.read_bytes
    a_step = max(read_s, work.forward_s(rows) + work.head_s(rows)) + facts.layers * LAYER_S
    return batches * tokens * a_step


def export_s(work: Work) -> dict[StageName, float]:
    """Of each stage of the export that stages.py knows of."""
    return {
        "calibration": _calibration_s(work),
        "repair": _repair_s(work),
        "graph": 0.3 + WRITE_S * work.facts.parameters,
        "verification": _verification_s(work),
    }


def _calibration_s(work: Work) -> float:
    """Rows through the layers as often as Hessians need, their sums and factors, and each weight rounded."""
    from edgetune.quantize.hessian import BATCH_ROWS, HESSIAN_BYTES
    from edgetune.quantize.methods import method_of
    from edgetune.recipe import CALIBRATED

    facts, rate = work.facts, work.machine.float_flops
    ends = SEARCH_S * facts.in_ends
    if method_of(facts.recipe.export) not in CALIBRATED:
        return ends + SEARCH_S * facts.in_layers
    columns = hessian_columns(facts)
    rows = min(facts.recipe.export.calibration_rows, work.train_rows)
    tokens = rows * facts.mean(facts.rows["train"])
    passes = math.ceil(4 * sum(count**2 for count in columns) / HESSIAN_BYTES)
    read_s = rows / BATCH_ROWS * 4 * facts.parameters / work.machine.read_bytes
    sums = 2 * tokens * sum(count**2 for count in columns) + sum(count**3 for count in columns)
    return ends + passes * (work.forward_s(tokens, is_float=True) + read_s) + sums / rate + ROUND_S * facts.in_layers


def _repair_s(work: Work) -> float:
    """Three passes of each step's tokens, four where layers are computed again; the eval rows a few times."""
    from edgetune.quantize.truth import MOST_EVAL_ROWS, MOST_TOKENS

    facts, table = work.facts, work.facts.recipe
    counts = facts.rows.get("eval", facts.rows["train"])
    tokens = table.export.repair_steps * work.step_tokens
    passes = 4 if table.gradient_checkpointing else 3
    looked = min(work.eval_rows or work.train_rows, MOST_EVAL_ROWS) * facts.mean(counts)
    looked += min(MOST_TOKENS, looked)
    batches = table.export.repair_steps * table.train.gradient_accumulation_steps
    head = work.head_s(4 * facts.trained_share * tokens + (LOOKS + 1) * facts.trained_share * looked, is_float=True)
    steps = work.forward_s(passes * tokens + (LOOKS + 1) * looked, is_float=True)
    return steps + head + batches * (passes - 1) * UNPACK_S * facts.in_layers


def _verification_s(work: Work) -> float:
    """Prompts through torch's model and two sessions of the bundle, some answers."""
    from edgetune.verify.deviation import ALL_LOGITS, ALL_PRODUCTS, LEAST_TOKENS, MOST_TOKENS
    from edgetune.verify.generation import GENERATED_PROMPTS, GENERATED_TOKENS, MOST_PROMPTS
    from edgetune.verify.generation import MOST_TOKENS as OF_PROMPT

    facts = work.facts
    affordable = min(MOST_TOKENS, ALL_LOGITS // facts.vocabulary, max(LEAST_TOKENS, ALL_PRODUCTS // facts.parameters))
    tokens = min(affordable, MOST_PROMPTS * min(OF_PROMPT, answered_tokens(facts)))
    compared = work.forward_s(tokens, is_float=True) + work.head_s(tokens, is_float=True)
    answers = GENERATED_PROMPTS * GENERATED_TOKENS / facts.bundle.tokens_per_s(work.machine.read_bytes)
    return VERIFY_S + 3 * compared + answers
