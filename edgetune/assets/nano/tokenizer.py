"""The tokenizer of `edgetune:nano`: byte-level BPE with 4,096 pieces in which the space joins last.

Ordinary BPE cuts " westbam" and "westbam" differently, so copying a word from a sentence into a JSON string means
translating pieces. Here the merges are learned on words without their leading space, and the merges of the space
with a first piece come after all others: the cut of a word never depends on the space, only its first piece does.
The cut into words is GPT-2's, so every runtime that knows GPT-2 tokenizers reads these files. No two digits merge.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgetune.assets.nano.corpus import ASSISTANT, BOS, END, SYSTEM, USER

VOCAB_SIZE = 4096
PAD = "<|pad|>"
SPECIAL_TOKENS = (BOS, PAD, SYSTEM, USER, ASSISTANT, END)
SPACE = "Ġ"  # how the byte-level alphabet writes a space
BARE_PIECES = (2000, 2100, 2200, 2300, 2400)  # candidates for the number of merges learned without spaces
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str], held_out: list[str]) -> Tokenizer:
    """The space-last tokenizer whose split of the merge budget gives the fewest tokens on the held-out texts."""
    merges = _bare_merges(texts, max(BARE_PIECES))
    budget = VOCAB_SIZE - len(SPECIAL_TOKENS) - len(pre_tokenizers.ByteLevel.alphabet())
    candidates = []
    for bare in BARE_PIECES:
        kept = merges[:bare]
        spaced = _space_merges(assemble(kept), texts, budget - len(kept))
        tokenizer = assemble(kept + spaced)
        candidates.append((count_tokens(tokenizer, held_out), bare, tokenizer))
    return min(candidates, key=lambda c: c[:2])[2]


def assemble(merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer from its merges: special tokens, then the 256 bytes, then one piece a merge."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """How many tokens the texts cost."""
    return sum(len(e.ids) for e in tokenizer.encode_batch(list(texts)))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers' AutoTokenizer and onnxruntime-genai read them."""
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": BOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _bare_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.Split(Regex(r"^ (?=\S)"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + count, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]][:count]


def _space_merges(tokenizer: Tokenizer, texts: list[str], count: int) -> list[tuple[str, str]]:
    # Which pieces follow a lone space inside one word: exactly those a merge with the space would save.
    followers: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(texts):
        tokens = encoding.tokens
        followers.update(b for a, b in pairwise(tokens) if a == SPACE and b[0] not in SPACE + "Ċ")
    special = set(SPECIAL_TOKENS)
    return [(SPACE, piece) for piece, _ in followers.most_common() if piece not in special][:count]
