"""The tokenizer of edgetune:nano: lossless, blind to the leading space, and the same for every loader."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from edgetune.assets import nano
from edgetune.assets.nano.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE, count_tokens, train_tokenizer

FOLDER = Path(nano.__file__).parent
HARD_STRINGS = [
    "",
    " ",
    "\n\n",
    "a  b   c ",
    "\ttabs\t\tand\r\nCRLF",
    " 123 4567 12,345.67",
    "½ ² ٣٤",
    "naïve café Ångström",
    "日本語 テキスト",
    "🙂 👩‍👩‍👧 🇩🇪",
    "don't I'll we've O'Neil's 'twas",
    "\ufeffbom \u200b \u00a0 \u2028",
    '{"intent": "PlayMusic", "slots": {"artist": "westbam"}}',
    "<|user|>hi<|end|>",
    "<|no such token|>",
    "\x00\x01",
    "x" * 300,
]
WORDS = ["westbam", "alumb", "jacksboro", "playlist", "Clásicos", "I", "zzyzx", "tomorrow", "XQJ", "3", "{", "über"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("text", HARD_STRINGS)
def test_decoding_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("word", WORDS)
def test_a_leading_space_changes_only_the_first_piece(tokenizer: Tokenizer, word: str) -> None:
    bare, spaced = tokenizer.encode(word).tokens, tokenizer.encode(" " + word).tokens
    joined = ["Ġ" + bare[0], *bare[1:]]
    apart = ["Ġ", *bare]  # the first piece is too rare to have a version with the space
    assert spaced in (joined, apart)


def test_common_words_keep_their_space_in_one_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" to the music of a").tokens == ["Ġto", "Ġthe", "Ġmusic", "Ġof", "Ġa"]


def test_json_punctuation_is_cheap_and_never_joins_letters(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode('{"intent": "x", "slots": {"artist": "westbam"}}').tokens
    assert {'{"', '":', 'Ġ"', '",', 'Ġ{"', '"}}'} <= set(tokens)
    assert not any('"' in t and any(c.isalnum() and c.isascii() for c in t) for t in tokenizer.get_vocab())


def test_no_piece_holds_two_digits(tokenizer: Tokenizer) -> None:
    assert not any(sum(c.isdigit() and c.isascii() for c in piece) > 1 for piece in tokenizer.get_vocab())


def test_the_vocabulary_is_full_and_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert [tokenizer.id_to_token(i) for i in range(6)] == list(SPECIAL_TOKENS)


def test_autotokenizer_gives_the_same_ids(tokenizer: Tokenizer, auto: PreTrainedTokenizerBase) -> None:
    assert [auto(t).input_ids for t in HARD_STRINGS] == [tokenizer.encode(t).ids for t in HARD_STRINGS]
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (0, 5, 1)


def test_chat_template_writes_roles_without_newlines(auto: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    prompt = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|endoftext|><|system|>s<|end|><|user|>hi<|end|><|assistant|>"
    full = auto.apply_chat_template([*messages, {"role": "assistant", "content": "ok"}], tokenize=False)
    assert full == prompt + "ok<|end|>"


def test_training_again_gives_a_full_lossless_tokenizer() -> None:
    texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)} plays the {i} song" for i in range(3000)]
    tokenizer = train_tokenizer(texts, texts[:50])
    assert tokenizer.decode(tokenizer.encode(" plays é 12").ids) == " plays é 12"
    assert count_tokens(tokenizer, [" plays the song"]) == 3
