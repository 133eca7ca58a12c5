"""Examples -> token ids and labels. Which tokens are learned is decided by where the template puts the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgetune.data.chat import render
from edgetune.data.formats import Example
from edgetune.errors import DataError, shown
from edgetune.model.base import embedding_rows

NOT_TRAINED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row and its labels: the same ids where the loss counts, else -100. Not shifted."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    place: str

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss counts: the first one has nothing before it that could predict it."""
        return sum(label != NOT_TRAINED for label in self.labels[1:])

    def cut(self, length: int) -> Encoded:
        """The row, or its first `length` tokens."""
        return (
            self
            if len(self.input_ids) <= length
            else Encoded(self.input_ids[:length], self.labels[:length], self.place)
        )


def encode(example: Example, tokenizer: Any, *, max_seq_len: int, loss_on: Literal["completion", "all"]) -> Encoded:
    """One example as token ids, cut after max_seq_len of them. Raises DataError if the template hides the answers."""
    return encode_batch([example], tokenizer, loss_on=loss_on)[0].cut(max_seq_len)


def encode_batch(
    examples: Sequence[Example], tokenizer: Any, *, loss_on: Literal["completion", "all"]
) -> list[Encoded]:
    """Examples as token ids at their full length; one call of the tokenizer for all that have messages."""
    chats = [example for example in examples if example.messages]
    texts, spans = [], []
    for example in chats:
        text, answers = _render_with_spans(example, tokenizer, is_masked=loss_on == "completion")
        texts.append(text)
        spans.append(answers)
    encoded = iter(_tokenise(texts, spans, tokenizer) if chats else ())
    result = []
    for example in examples:
        if example.messages:
            ids, is_answer = next(encoded)
            labels = (
                ids
                if loss_on == "all"
                else [t if learned else NOT_TRAINED for t, learned in zip(ids, is_answer, strict=True)]
            )
        else:
            ids = labels = _plain_text(example.text or "", tokenizer)
        check_tokens(ids, tokenizer, example.place)
        result.append(Encoded(ids, labels, example.place))
    return result


def check_tokens(ids: Sequence[int], tokenizer: Any, place: str) -> None:
    """Raises DataError, with the row's place, for a token that the base has no vector for."""
    rows = embedding_rows(tokenizer)
    wrong = max(ids, default=0)
    if rows is not None and wrong >= rows:
        raise DataError(
            f"{place}: the token {shown(tokenizer.convert_ids_to_tokens(wrong))} has the number {wrong}, and the base "
            f"has vectors for {rows} tokens",
            cure="take it out of the rows, or resize the base's embedding to its tokenizer and save it with that",
        )


def may_exceed(tokenizer: Any) -> bool:
    """Whether the tokenizer knows a token that the base has no vector for."""
    rows = embedding_rows(tokenizer)
    return rows is not None and len(tokenizer) > rows


def _plain_text(text: str, tokenizer: Any) -> list[int]:
    """Start token if there is one, the text, and the end-of-text token: all learned."""
    ids = list(tokenizer(text, verbose=False)["input_ids"]) if text else []
    if ids and tokenizer.bos_token_id is not None and ids[0] != tokenizer.bos_token_id:
        ids.insert(0, tokenizer.bos_token_id)
    if ids and tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return ids


def _render_with_spans(
    example: Example, tokenizer: Any, *, is_masked: bool = True
) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation and the characters of each answer, its end-of-turn marker included; none if not masked.

    The text up to an answer must start the text of the whole, or the model would be trained on other prompts than
    it is asked with. Raises DataError where a template breaks that.
    """
    try:
        whole = render(tokenizer, example.messages)
        answers = [n for n, message in enumerate(example.messages) if message.role == "assistant"] if is_masked else []
        return whole, [_span(whole, example, number, tokenizer) for number in answers]
    except DataError as error:
        raise DataError(f"{example.place}: {error.message}", cure=error.cure) from None


def _span(whole: str, example: Example, number: int, tokenizer: Any) -> tuple[int, int]:
    """First and last character (exclusive) of the answer that is message `number`."""
    if number == 0:
        return _opening_span(whole, example, tokenizer)
    before = render(tokenizer, example.messages[:number], add_generation_prompt=True)
    if not whole.startswith(before):
        raise DataError(
            f"the chat template writes what stands before message {number + 1} in another way than it asks for it",
            cure='split the row into single turns, or set data.loss_on = "all"',
        )
    is_last = number + 1 == len(example.messages)
    upto = whole if is_last else render(tokenizer, example.messages[: number + 1])
    if whole.startswith(upto):
        return len(before), len(upto)
    # Some templates (Qwen3's) write the last answer with more around it than earlier ones: it ends at its end token.
    # That the answer itself still stands there is checked: others cut its reasoning out once it is history.
    end = whole.find(tokenizer.eos_token, len(before)) if tokenizer.eos_token else -1
    if end < 0 or example.messages[number].content.strip() not in whole[len(before) : end]:
        raise DataError(
            f"the chat template writes message {number + 1} differently once others follow",
            cure='split the row into single turns, or set data.loss_on = "all"',
        )
    return len(before), end + len(tokenizer.eos_token)


def _opening_span(whole: str, example: Example, tokenizer: Any) -> tuple[int, int]:
    """The span of a first message that is an answer: no template can be asked for what stands before it."""
    content = example.messages[0].content.strip()
    start = whole.find(content)
    upto = render(tokenizer, example.messages[:1])
    if start < 0 or not whole.startswith(upto):
        raise DataError("the chat template does not write a first message of the assistant", cure="leave it out")
    return start, len(upto)


def _tokenise(
    texts: list[str], spans: list[list[tuple[int, int]]], tokenizer: Any
) -> list[tuple[list[int], list[bool]]]:
    """Token ids and whether each belongs to an answer."""
    if not tokenizer.is_fast:
        return [_tokenise_in_parts(text, answers, tokenizer) for text, answers in zip(texts, spans, strict=True)]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = []
    for text, answers, ids, offsets in zip(texts, spans, batch["input_ids"], batch["offset_mapping"], strict=True):
        if any(start < edge < end for edge, _ in answers for start, end in offsets):
            rows.append(_tokenise_in_parts(text, answers, tokenizer))
            continue
        flags = [any(first <= start < last for first, last in answers) for start, _ in offsets]
        rows.append((ids, _without_what_follows_the_end(ids, flags, tokenizer)))
    return rows


def _tokenise_in_parts(text: str, answers: list[tuple[int, int]], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Prompt and answers tokenised apart, as generation does; for templates whose prompt does not end with a token."""
    ids: list[int] = []
    flags: list[bool] = []
    position = 0
    for first, last in [*answers, (len(text), len(text))]:
        for part, learned in ((text[position:first], False), (text[first:last], True)):
            pieces = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] if part else []
            ids += pieces
            flags += [learned] * len(pieces)
        position = last
    return ids, _without_what_follows_the_end(ids, flags, tokenizer)


def _without_what_follows_the_end(ids: Sequence[int], flags: list[bool], tokenizer: Any) -> list[bool]:
    """Answers end with their end token; a line break that the template puts after it is not learned."""
    kept = list(flags)
    for place in range(len(ids) - 1, 0, -1):
        if kept[place] and (place + 1 == len(ids) or not flags[place + 1]):
            stop = place
            while stop > 0 and flags[stop] and ids[stop] != tokenizer.eos_token_id:
                stop -= 1
            if flags[stop] and ids[stop] == tokenizer.eos_token_id and place - stop <= 2:
                kept[stop + 1 : place + 1] = [False] * (place - stop)
    return kept
