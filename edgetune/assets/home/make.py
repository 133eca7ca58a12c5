"""Makes edgetune:home from its patterns and words: the same seed gives the same bytes.

    python -m edgetune.assets.home.make --out DIR [--seed 0]

Patterns are taken in turn and their slots filled at random. About half of the test rows
carry exactly one held-out value.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from edgetune.assets.home import patterns, words

Split = Literal["train", "eval", "test"]
Value = str | int
T = TypeVar("T")

ROWS: dict[Split, int] = {"train": 4000, "eval": 400, "test": 500}
KEEP_OPTIONAL = 0.55
SLOT = re.compile(r"{(\w+)}")
OPTIONAL = re.compile(r"\[([^]]*)\]")


@dataclass(frozen=True)
class Example:
    """One utterance, the JSON it asks for, the pattern it was made from and the held-out value it carries, if any."""

    prompt: str
    completion: str
    pattern: str
    held_out: str | None


def build(seed: int = 0) -> dict[Split, list[Example]]:
    """The examples of each split, shuffled; no prompt occurs twice."""
    rng = random.Random(seed)
    prompts: set[str] = set()
    return {split: build_split(split, rng=rng, prompts=prompts) for split in ROWS}


def build_split(split: Split, *, rng: random.Random, prompts: set[str]) -> list[Example]:
    """The shuffled examples of one split; their prompts are added to `prompts` and avoid what is there."""
    examples: list[Example] = []
    held_out_uses: Counter[str] = Counter()
    for action, share in patterns.SHARES.items():
        choices = patterns.PATTERNS[split][action]
        for index in range(ROWS[split] * share // 100):
            pattern = choices[index % len(choices)]
            # Whole rounds of the patterns alternate, so that every pattern is met with and without a held-out value.
            uses = held_out_uses if split == "test" and index // len(choices) % 2 == 0 else None
            example = make_example(action, pattern, split, rng=rng, held_out_uses=uses)
            while example.prompt in prompts:
                example = make_example(action, pattern, split, rng=rng, held_out_uses=uses)
            prompts.add(example.prompt)
            examples.append(example)
    return sorted(examples, key=lambda _: rng.random())


def make_example(
    action: str, pattern: str, split: Split, *, rng: random.Random, held_out_uses: Counter[str] | None
) -> Example:
    """One example of a pattern; with `held_out_uses`, one slot takes the held-out value that is due, and counts it."""
    text = OPTIONAL.sub(lambda match: match[1] if rng.random() < KEEP_OPTIONAL else "", pattern)
    slots = [slot for slot in SLOT.findall(text) if slot != "is"]
    values: dict[str, Value] = {slot: pick(words.SEEN[slot], rng) for slot in slots}
    held_out = None
    due = [slot for slot in slots if slot in words.HELD_OUT] if held_out_uses is not None else []
    if held_out_uses is not None and due:
        slot = min(due, key=lambda slot: held_out_uses[slot] / len(words.HELD_OUT[slot]))
        held_out = words.HELD_OUT[slot][held_out_uses[slot] % len(words.HELD_OUT[slot])]
        values[slot] = held_out
        held_out_uses[slot] += 1
    return Example(
        prompt=say(text, values, wrap=pick(wraps(text, split), rng)),
        completion=write(action, values),
        pattern=pattern,
        held_out=held_out,
    )


def say(text: str, values: dict[str, Value], *, wrap: str) -> str:
    """The utterance: a pattern without optional parts, its slots filled, put as an order or a remark."""
    device = next((str(value) for slot, value in values.items() if words.FIELD_OF_SLOT[slot] == "device"), "")
    verb = "are" if device.endswith("s") else "is"
    return wrap.format(text.removeprefix("~").format_map({**values, "is": verb}))


def write(action: str, values: dict[str, Value]) -> str:
    """The JSON text of an action, its fields in their fixed order, without those that were not said."""
    said = {words.FIELD_OF_SLOT[slot]: value for slot, value in values.items()}
    return json.dumps({"action": action} | {field: said[field] for field in patterns.FIELDS[action] if field in said})


def wraps(text: str, split: Split) -> tuple[str, ...]:
    """The ways a pattern may be put in a split: the test split also has some of its own."""
    is_remark = text.startswith("~")
    known = patterns.REMARK_WRAPS if is_remark else patterns.ORDER_WRAPS
    own = patterns.HELD_OUT_REMARK_WRAPS if is_remark else patterns.HELD_OUT_ORDER_WRAPS
    return known + own if split == "test" else known


def pick(choices: Sequence[T], rng: random.Random) -> T:
    """One of the choices; random() alone is promised to give the same sequence in every Python version."""
    return choices[int(rng.random() * len(choices))]


def save(splits: dict[Split, list[Example]], out: Path) -> None:
    """Write train.jsonl, eval.jsonl and test.jsonl, one {"prompt", "completion"} object a line, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        rows = ({"prompt": example.prompt, "completion": example.completion} for example in examples)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Read the command line and write the three files."""
    parser = argparse.ArgumentParser(prog="python -m edgetune.assets.home.make", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the three files into")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other rows (default: 0)")
    options = parser.parse_args()
    save(build(options.seed), options.out)


if __name__ == "__main__":
    main()
