"""The pretraining texts: files on disk -> documents, split into training and held-out ones. First step."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

BOS, SYSTEM, USER, ASSISTANT, END = "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
MAX_DOCUMENT_CHARS = 4000
HELD_OUT_PERCENT = 1
PASSES = {"snips": 3}
"""How often a source is read while the others are read once: spoken commands are what this base is made for."""
SHORT_SENTENCE_FILES = ("common-voice_sentences", "tatoeba_english-sentences")


@dataclass(frozen=True)
class Document:
    """One text of at most a few thousand characters; a chat document is already rendered with its role tokens."""

    source: str
    text: str
    is_chat: bool = False


def find_data() -> Path:
    """The data folder: $EDGETUNE_DATA, else `shared/data` beside the repository; the corpus is its sibling `corpus`."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    return Path(os.environ.get("EDGETUNE_DATA", beside)).resolve()


def read_documents(data: Path) -> list[Document]:
    """Every training document: the corpus, TinyStories, GSM8K questions and answers, SNIPS utterances (no labels).

    An utterance is a document of its own, a user's turn: so it stands where a fine-tune will find it.
    """
    documents: list[Document] = []
    for path in sorted((data.parent / "corpus").glob("*.txt")):
        documents += _read_corpus_file(path)
    stories = (data / "tinystories" / "train_first_2MiB.txt").read_bytes().decode("utf-8", errors="ignore")
    documents += [Document("tinystories", s.strip()) for s in stories.split(BOS)[:-1] if s.strip()]
    for line in (data / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        answer = re.sub(r"<<[^>]*>>", "", row["answer"])
        documents.append(Document("gsm8k", render_chat([(USER, row["question"]), (ASSISTANT, answer)]), is_chat=True))
    utterances = [u.strip() for u in (data / "snips" / "train" / "seq.in").read_text("utf-8").splitlines()]
    documents += [Document("snips", render_chat([(USER, utterance)]), is_chat=True) for utterance in utterances]
    return documents


def split_held_out(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Training documents and about one percent held out, chosen by a hash of the text so that the choice is stable."""
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        (held_out if int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT else train).append(document)
    return train, held_out


def render_chat(turns: list[tuple[str, str]]) -> str:
    """The chat template without its first token: role token, content, end token; no newlines between."""
    return "".join(f"{role}{content}{END}" for role, content in turns)


def _read_corpus_file(path: Path) -> list[Document]:
    documents = []
    for number, block in enumerate(path.read_text("utf-8").split("\n\n\n")):
        block = block.strip()
        if not block:
            continue
        if path.stem.startswith("taskmaster"):
            documents.append(Document(path.stem, _dialogue(block), is_chat=True))
        elif path.stem == "fairytaleqa_questions":
            documents.append(Document(path.stem, _questions(block), is_chat=True))
        elif path.stem in SHORT_SENTENCE_FILES:
            lower = number % 2 == 1  # half of the everyday sentences are seen as a voice assistant would hear them
            documents += [Document(path.stem, t.lower() if lower else t) for t in _chunks(block, "\n")]
        else:
            documents += [Document(path.stem, t) for t in _chunks(block, "\n\n")]
    return documents


def _dialogue(block: str) -> str:
    roles = {"User": USER, "Assistant": ASSISTANT}
    turns = re.findall(r"^(User|Assistant): (.*)$", block, flags=re.M)
    return render_chat([(roles[role], text.strip()) for role, text in turns])


def _questions(block: str) -> str:
    pairs = re.findall(r"^Question: (.*)\nAnswer: (.*)$", block, flags=re.M)
    return render_chat([turn for q, a in pairs for turn in ((USER, q.strip()), (ASSISTANT, a.strip()))])


def _chunks(text: str, separator: str) -> list[str]:
    chunks, current = [], ""
    for paragraph in text.split(separator):
        if current and len(current) + len(paragraph) > MAX_DOCUMENT_CHARS:
            chunks.append(current)
            current = ""
        current = current + separator + paragraph if current else paragraph
    return [*chunks, current] if current else chunks
