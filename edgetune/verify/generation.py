"""Verification of a bundle: is what was written what was trained? Called by export on every bundle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgetune.data.chat import end_ids, render_turns
from edgetune.data.encode import NOT_TRAINED, Encoded
from edgetune.export.graph import Weights
from edgetune.export.read_graph import DeviceTensors, GraphWeights, WeightNode, same_bytes
from edgetune.files import read_json
from edgetune.model.lazy import CheckpointTensors, lazy_model
from edgetune.model.weights import Place, find_tensors
from edgetune.quantize.folder import QuantizedFolder
from edgetune.quantize.precisions import PRECISIONS
from edgetune.runtime.bundle import GENAI_CONFIG, GRAPH, Bundle
from edgetune.runtime.decoder import Decoder
from edgetune.runtime.logits import Logits
from edgetune.runtime.prompt import Prompter
from edgetune.runtime.session import genai_config, import_genai
from edgetune.verify.checks import Check, Verification, check, made
from edgetune.verify.deviation import at_level_0, deviations, last_logits
from edgetune.verify.lengths import attention_checks, length_checks

Prompt = Mapping[str, Any] | Sequence[Mapping[str, Any]] | str
"""Messages up to where the answer starts, alone or as {"messages", "tools"}; or plain text."""

MOST_PROMPTS = 200
MOST_TOKENS = 64
"""Tokens of a prompt whose logits are compared."""
KL_LIMIT = 0.1
"""Nats; what int8 activations may cost. Sound models measure below 0.01, a broken kernel or scale whole nats."""
GENERATED_PROMPTS = 4
GENERATED_TOKENS = 48
MOST_ANSWERED = 64
"""Rows of training whose ends are compared."""
ANSWERED_ROWS, MOST_ANSWERED_TOKENS = 8, 512
"""Of these, those after which the models are asked for the end, and their tokens; prompts that are answered are no
longer either."""
ENDS_LIMIT = 0.5
"""Of the share of answers after which torch's unrounded model finds an end likeliest and the bundle does not."""


def verify(
    bundle: Bundle,
    merged: Path,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Any,
    quantized: QuantizedFolder | None = None,
    answered: Sequence[Encoded] = (),
) -> Verification:
    """Compare a bundle with the Hugging Face folder it was made from, on the user's prompts and with its tokenizer.

    `quantized`: the folder's weights on the grid where they were not rounded by the export itself. `answered`: rows as
    they are trained on, of which the answers alone are learned: by them it is seen whether answers end.

    A check that cannot even be made counts as failed, with the reason in its detail.
    """
    prompts = prompts[:MOST_PROMPTS]
    source = Weights({**find_tensors(merged), **(quantized.vectors if quantized else {})}, quantized)
    checks: list[Check] = []
    for name, make in (
        ("weights", lambda: weight_checks(bundle, source)),
        ("attention", lambda: attention_checks(bundle, merged)),
        ("logits", lambda: _logits(bundle, merged, source.places, token_sequences(prompts, tokenizer, bundle))),
        ("ends of answers", lambda: _ends(bundle, merged, answered)),
    ):
        checks += made(name, make)
    return Verification((*checks, *text_checks(bundle, merged, prompts, tokenizer)))


def text_checks(bundle: Bundle, merged: Path, prompts: Sequence[Prompt], tokenizer: Any) -> list[Check]:
    """Whether texts become tokens and answers end on the device as in training."""
    checks: list[Check] = []
    for name, make in (
        ("prompts", lambda: _prompts(bundle, prompts, tokenizer)),
        ("token ids", lambda: _token_ids(bundle, prompts, tokenizer)),
        ("end of turn", lambda: _end_of_turn(bundle, merged, tokenizer)),
        ("generation", lambda: _generation(bundle, prompts, tokenizer)),
    ):
        checks += made(name, make)
    return checks


def weight_checks(bundle: Bundle, source: Weights) -> Iterator[Check]:
    """Every quantised tensor in the graph holds, byte for byte, what calibration and repair, or quantize.grid, made."""
    if bundle.grid is None:
        return
    weights = GraphWeights(bundle.path / GRAPH, source.places)
    wrong = [node.name for node in weights.nodes if not _is_ours(bundle, weights, node, source)]
    detail = f"{len(weights.nodes)} weights compared byte for byte" + (f", differing: {wrong[0]}" if wrong else "")
    yield check("weight bytes", len(wrong) if weights.nodes else math.inf, 0, detail)
    slow = weights.float_matmuls()
    detail = f"{slow[0]} is not on the grid" if slow else "every matrix product takes the fast path"
    yield check("matrices off the grid", len(slow), 0, detail)


def _is_ours(bundle: Bundle, weights: GraphWeights, node: WeightNode, source: Weights) -> bool:
    grid = bundle.grid
    assert grid is not None
    ours = source.on_grid(node.sources, grid)
    if (node.attributes["bits"], node.attributes["block_size"]) != (ours.bits, ours.block_size):
        return False
    if node.attributes.get("accuracy_level", grid.accuracy_level) != grid.accuracy_level:
        return False
    return same_bytes(ours, weights.matrix(node))


def _logits(
    bundle: Bundle, merged: Path, places: Mapping[str, Place], sequences: Sequence[Sequence[int]]
) -> Iterator[Check]:
    """The graph computes what torch computes with the same numbers; with int8 activations, nearly."""
    reference = lazy_model(merged, DeviceTensors(GraphWeights(bundle.path / GRAPH, places), places))
    limit = PRECISIONS[bundle.precision].logits_limit
    if bundle.grid is None:
        (found,) = deviations(reference, [bundle], sequences)
        detail = f"{found.tokens} tokens, the likeliest next one is the same after {found.agreement:.2%}"
        yield check("logits against torch", found.relative, limit, detail)
        yield from length_checks(reference, bundle, merged, sequences, limit=limit)
        return
    with at_level_0(bundle) as exact:
        found, rounded = deviations(reference, [exact, bundle], sequences)
        beyond = list(length_checks(reference, exact, merged, sequences, limit=limit))
    detail = f"{found.tokens} tokens against torch with the same dequantised integers, activations in float32"
    yield check("logits against torch", found.relative, limit, detail)
    yield from beyond
    level = bundle.grid.accuracy_level
    detail = f"nats a token at accuracy level {level}; the same likeliest next one after {rounded.agreement:.2%}"
    yield check("rounded activations", rounded.kl, KL_LIMIT, detail)


def _ends(bundle: Bundle, merged: Path, answered: Sequence[Encoded]) -> Iterator[Check]:
    """What training ended answers with ends them on the device, and comes after them as it does in torch."""
    if not answered:
        return
    ends = set(bundle.chat_format.eos_ids)
    closed = [(row, max(i for i, label in enumerate(row.labels) if label != NOT_TRAINED)) for row in answered]
    wrong = [f"{row.place} with token {row.input_ids[last]}" for row, last in closed if row.input_ids[last] not in ends]
    detail = f"{len(closed)} answers of training" + (f", another end: {wrong[0]}" if wrong else "")
    yield check("ends of answers", len(wrong), 0, detail)
    most = min(MOST_ANSWERED_TOKENS, bundle.context_length)
    texts = [list(row.input_ids[:last]) for row, last in closed if 0 < last <= most][:ANSWERED_ROWS]
    if not texts:
        return
    reference, device = lazy_model(merged, CheckpointTensors(find_tensors(merged))), Logits(bundle)
    found = sum(int(device.logits(ids)[-1].argmax()) in ends for ids in texts)
    wanted = sum(int(last_logits(reference, ids).argmax()) in ends for ids in texts)
    detail = f"likeliest after {found} of {len(texts)} answers of training, with torch after {wanted}"
    yield check("ends that are found", max(0, wanted - found) / len(texts), ENDS_LIMIT, detail)


def _prompts(bundle: Bundle, prompts: Sequence[Prompt], tokenizer: Any) -> Iterator[Check]:
    """The device renders conversations as training did."""
    conversations = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if not conversations or bundle.chat_format.template is None:
        return
    prompter = Prompter(bundle)
    wrong = [
        messages
        for messages in conversations
        if device_text(messages, prompter) != training_text(messages, tokenizer, bundle)
    ]
    detail = f"{len(conversations)} conversations" + (f", differing: {wrong[0]}" if wrong else "")
    yield check("rendered prompts", len(wrong), 0, detail)


def _token_ids(bundle: Bundle, prompts: Sequence[Prompt], tokenizer: Any) -> Iterator[Check]:
    """The device's tokenizer gives training's ids; plain onnxruntime-genai's own one too, which is told only."""
    prompter = Prompter(bundle)
    plain = import_genai().Tokenizer(genai_config(bundle))
    wrong, plain_wrong = [], []
    for prompt in prompts:
        ids = training_ids(prompt, tokenizer, bundle)
        if ids != device_ids(prompt, prompter):
            wrong.append(prompt)
        text = training_text(prompt, tokenizer, bundle)
        bos = [tokenizer.bos_token_id]
        if [int(token) for token in plain.encode(text)] not in (ids, bos + ids, ids[1:] if ids[:1] == bos else ids):
            plain_wrong.append(prompt)
    detail = f"{len(prompts)} prompts" + (f", differing: {wrong[0]!r}" if wrong else "")
    yield check("token ids", len(wrong), 0, detail)
    detail = f"{len(prompts)} prompts" + (f", differing: {plain_wrong[0]!r}" if plain_wrong else "")
    yield check("token ids of plain onnxruntime-genai", len(plain_wrong), 0, detail, is_required=False)


def _end_of_turn(bundle: Bundle, merged: Path, tokenizer: Any) -> Iterator[Check]:
    """Everything that may stop the device stops at what training put after an answer."""
    wanted = set(end_ids(tokenizer, merged, is_chat=bundle.chat_format.template is not None))
    model = read_json(bundle.path / GENAI_CONFIG)["model"]
    stated = model["eos_token_id"]
    found = set(stated) if isinstance(stated, list) else {stated}
    wrong = (wanted ^ found) | (wanted ^ set(bundle.chat_format.eos_ids))
    yield check("end-of-turn tokens", len(wrong), 0, f"ids {', '.join(map(str, sorted(wanted)))}")


def _generation(bundle: Bundle, prompts: Sequence[Prompt], tokenizer: Any) -> Iterator[Check]:
    """Answers end at an end-of-turn token, which is not in them, or at the limit."""
    decoder = Decoder(bundle)
    ended = wrong = 0
    most = min(MOST_ANSWERED_TOKENS, bundle.context_length - 1)
    whole = (training_ids(prompt, tokenizer, bundle) for prompt in prompts)
    chosen = list(islice((ids for ids in whole if 0 < len(ids) <= most), GENERATED_PROMPTS))
    chosen = chosen or [ids[:most] for ids in token_sequences(prompts, tokenizer, bundle)[:GENERATED_PROMPTS]]
    for ids in chosen:
        answer = decoder.generate(ids, max_new_tokens=GENERATED_TOKENS)
        ended += answer.stop_reason == "end"
        wrong += (
            bool(set(answer.token_ids) & set(bundle.chat_format.eos_ids)) or len(answer.token_ids) > GENERATED_TOKENS
        )
    detail = f"{ended} of {len(chosen)} answers ended within {GENERATED_TOKENS} tokens"
    yield check("generation", wrong, 0, detail)


def _conversation(prompt: Prompt) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The messages of a prompt that is no plain text, and its tools."""
    if isinstance(prompt, Mapping):
        return list(prompt["messages"]), list(prompt["tools"])
    assert not isinstance(prompt, str)
    return list(prompt), []


def device_text(prompt: Prompt, prompter: Prompter) -> str:
    """A conversation as the device renders it."""
    messages, tools = _conversation(prompt)
    return prompter.render(messages, tools=tools)


def device_ids(prompt: Prompt, prompter: Prompter) -> list[int]:
    """Token ids of a prompt on the device."""
    if isinstance(prompt, str):
        return prompter.text_ids(prompt)
    messages, tools = _conversation(prompt)
    return prompter.chat_ids(messages, tools=tools)


def training_text(prompt: Prompt, tokenizer: Any, bundle: Bundle) -> str:
    """A prompt as training saw it, the recipe's system message included."""
    if isinstance(prompt, str):
        return prompt
    messages, tools = _conversation(prompt)
    if bundle.chat_format.system is not None and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": bundle.chat_format.system})
    return render_turns(tokenizer, messages, tools=tools, add_generation_prompt=True)


def training_ids(prompt: Prompt, tokenizer: Any, bundle: Bundle) -> list[int]:
    """Token ids of a prompt as training made them, up to where the answer starts."""
    if not isinstance(prompt, str):
        return list(tokenizer(training_text(prompt, tokenizer, bundle), add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
        ids.insert(0, tokenizer.bos_token_id)
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def token_sequences(prompts: Sequence[Prompt], tokenizer: Any, bundle: Bundle) -> list[list[int]]:
    """Token ids of the prompts, cut to MOST_TOKENS and to the context."""
    most = min(MOST_TOKENS, bundle.context_length)
    found = [training_ids(prompt, tokenizer, bundle)[:most] for prompt in prompts]
    return [ids for ids in found if ids] or [[bundle.chat_format.eos_ids[0]]]
