"""Examples -> token ids and labels. Which tokens are learned is decided by where the template puts the answers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from edgetune.data.chat import Closing, appended_end, call_end, closing, render
from edgetune.data.formats import Example
from edgetune.errors import DataError, shown
from edgetune.model.base import embedding_rows

NOT_TRAINED = -100
_Item = TypeVar("_Item")


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
    end: Closing | None = None
    for example in chats:
        with _placed(example):
            end = end or closing(tokenizer)
            text, answers = _render_with_spans(example, tokenizer, end, is_masked=loss_on == "completion")
        texts.append(text)
        spans.append(answers)
    encoded = iter(_tokenise(texts, spans, tokenizer, end) if end else ())
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


def answer_text(example: Example, tokenizer: Any) -> str:
    """The last answer as a model that learned it writes it: its content, with calls and reasoning all of its text."""
    last = example.messages[-1]
    if not last.more:
        return last.content
    row = encode_batch([example], tokenizer, loss_on="completion")[0]
    start = len(row.labels)
    while start and row.labels[start - 1] == NOT_TRAINED:
        start -= 1
    stop = start
    while start and row.labels[start - 1] != NOT_TRAINED:
        start -= 1
    ends = {closing(tokenizer).token_id, call_end(tokenizer), tokenizer.eos_token_id}
    ids = [token for token in row.input_ids[start:stop] if token not in ends]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """So many items at a time, the rest last."""
    stream = iter(items)
    while batch := list(itertools.islice(stream, size)):
        yield batch


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


@contextlib.contextmanager
def _placed(example: Example) -> Iterator[None]:
    """A DataError raised in the block gets the example's place."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{example.place}: {error.message}", cure=error.cure) from None


def _render_with_spans(
    example: Example, tokenizer: Any, end: Closing, *, is_masked: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation and the characters of each answer, the token that ends it included; none if not masked.

    The text up to an answer must start the text of the whole, or the model would be trained on other prompts than
    it is asked with. Where the template puts no token behind an answer, the eos_token stands behind the last one: what
    comes after the others is not learned, so that the model knows but this end. Raises DataError.
    """
    whole = render(tokenizer, example.messages, tools=example.tools)
    answers = [n for n, message in enumerate(example.messages) if message.role == "assistant"] if is_masked else []
    spans = [_span(whole, example, number, tokenizer, end) for number in answers]
    appended = appended_end(tokenizer, end)
    if not appended or example.messages[-1].role != "assistant":
        return whole, spans
    last = end.end_of(whole, 0, len(whole))
    return whole[:last] + appended, [*spans[:-1], *((first, last + len(appended)) for first, _ in spans[-1:])]


def _span(whole: str, example: Example, number: int, tokenizer: Any, end: Closing) -> tuple[int, int]:
    """First and last character (exclusive) of the answer that is message `number`."""
    if number == 0:
        return _opening_span(whole, example, tokenizer, end)
    before = render(tokenizer, example.messages[:number], tools=example.tools, add_generation_prompt=True)
    if not whole.startswith(before):
        raise DataError(
            f"the chat template writes what stands before message {number + 1} in another way than it asks for it",
            cure='split the row into single turns, or set data.loss_on = "all"',
        )
    is_last = number + 1 == len(example.messages)
    upto = whole if is_last else render(tokenizer, example.messages[: number + 1], tools=example.tools)
    if whole.startswith(upto):
        return len(before), end.end_of(whole, len(before), len(upto))
    # Some templates (Qwen3's) write the last answer with more around it than earlier ones: it ends at its end token.
    # That the answer itself still stands there is checked: others cut its reasoning out once it is history.
    last = whole.find(end.token, len(before)) if end.token else -1
    if last < 0 or example.messages[number].content.strip() not in whole[len(before) : last]:
        raise DataError(
            f"the chat template writes message {number + 1} differently once others follow",
            cure='split the row into single turns, or set data.loss_on = "all"',
        )
    return len(before), last + len(end.token or "")


def _opening_span(whole: str, example: Example, tokenizer: Any, end: Closing) -> tuple[int, int]:
    """The span of a first message that is an answer: no template can be asked for what stands before it."""
    content = example.messages[0].content.strip()
    start = whole.find(content)
    upto = render(tokenizer, example.messages[:1], tools=example.tools)
    if not content or start < 0 or not whole.startswith(upto):
        raise DataError("the chat template does not write a first message of the assistant", cure="leave it out")
    return start, end.end_of(whole, start, len(upto))


def _tokenise(
    texts: list[str], spans: list[list[tuple[int, int]]], tokenizer: Any, closed_by: Closing
) -> list[tuple[list[int], list[bool]]]:
    """Token ids and whether each belongs to an answer.

    No token is half an answer's: where an answer begins, or ends without a token of its own, the text is cut first.
    """
    if not tokenizer.is_fast:
        return [_tokenise_in_parts(text, answers, tokenizer) for text, answers in zip(texts, spans, strict=True)]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = []
    for text, answers, ids, offsets in zip(texts, spans, batch["input_ids"], batch["offset_mapping"], strict=True):
        edges = [edge for answer in answers for edge in (answer[:1] if closed_by.token else answer)]
        if any(start < edge < end for edge in edges for start, end in offsets):
            rows.append(_tokenise_in_parts(text, answers, tokenizer))
            continue
        flags = [any(first <= start < last for first, last in answers) for start, _ in offsets]
        rows.append((ids, flags))
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
    return ids, flags
