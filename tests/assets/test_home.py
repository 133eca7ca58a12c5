"""edgetune:home: the files are what the script makes, and the splits are as disjoint as the card says."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.assets import home
from edgetune.assets.home import make, patterns, words

FOLDER = Path(home.__file__).parent
SPLITS = ("train", "eval", "test")


def read_rows(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {split: read_rows(split) for split in SPLITS}


@pytest.fixture(scope="module")
def examples() -> dict[str, list[make.Example]]:
    return dict(make.build(0))


def holds(prompt: str, phrase: str) -> bool:
    """Whether the phrase is a span of whole words of the prompt."""
    return f" {phrase} " in f" {prompt} "


def forms(pattern: str) -> Iterator[str]:
    """A pattern with and without each optional part, its slots named by the fields they fill."""
    parts = re.split(r"(\[[^]]*\])", pattern.removeprefix("~"))
    for kept in itertools.product(*([part[1:-1], ""] if part.startswith("[") else [part] for part in parts)):
        yield make.SLOT.sub(lambda slot: "{" + words.FIELD_OF_SLOT.get(slot[1], slot[1]) + "}", "".join(kept))


def test_the_script_makes_the_committed_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgetune.assets.home.make", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=FOLDER.parents[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "test.jsonl", "train.jsonl"]
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


def test_another_seed_gives_other_rows(examples: dict[str, list[make.Example]]) -> None:
    assert make.build(1)["test"] != examples["test"]


def test_the_counts_and_the_size_are_those_of_the_card(rows: dict[str, list[dict[str, str]]]) -> None:
    assert {split: len(rows[split]) for split in SPLITS} == {"train": 4000, "eval": 400, "test": 500}
    assert sum((FOLDER / f"{split}.jsonl").stat().st_size for split in SPLITS) < 1_000_000


@pytest.mark.parametrize("split", SPLITS)
def test_each_action_has_its_share_of_a_split(rows: dict[str, list[dict[str, str]]], split: str) -> None:
    counts = Counter(json.loads(row["completion"])["action"] for row in rows[split])
    assert counts == {action: len(rows[split]) * share // 100 for action, share in patterns.SHARES.items()}


@pytest.mark.parametrize("split", SPLITS)
def test_every_completion_is_compact_json_with_fields_in_order(
    rows: dict[str, list[dict[str, str]]], split: str
) -> None:
    for row in rows[split]:
        assert list(row) == ["prompt", "completion"]
        parsed = json.loads(row["completion"])
        assert json.dumps(parsed) == row["completion"]
        order = ("action", *patterns.FIELDS[parsed["action"]])
        assert list(parsed) == sorted(parsed, key=order.index)
        assert len(parsed) > 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_is_a_span_of_its_prompt(rows: dict[str, list[dict[str, str]]], split: str) -> None:
    for row in rows[split]:
        fields = json.loads(row["completion"])
        del fields["action"]
        assert all(holds(row["prompt"], str(value)) for value in fields.values()), row


@pytest.mark.parametrize("split", SPLITS)
def test_every_prompt_is_lower_case_speech_without_punctuation(
    rows: dict[str, list[dict[str, str]]], split: str
) -> None:
    for row in rows[split]:
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", row["prompt"]), row["prompt"]


def test_no_prompt_occurs_twice_in_or_across_splits(rows: dict[str, list[dict[str, str]]]) -> None:
    counts = Counter(row["prompt"] for split in SPLITS for row in rows[split])
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_one_utterance_means_one_action_even_across_seeds(examples: dict[str, list[make.Example]]) -> None:
    meanings = defaultdict(set)
    for splits in (examples, make.build(1), make.build(2)):
        for example in itertools.chain.from_iterable(splits.values()):
            meanings[example.prompt].add(example.completion)
    assert [prompt for prompt, completions in meanings.items() if len(completions) > 1] == []


@pytest.mark.parametrize("slot", ["device", "light", "heating", "speaker", "opening"])
def test_a_room_and_a_device_said_together_split_in_one_way(slot: str) -> None:
    rooms = words.SEEN["room"] + words.HELD_OUT["room"]
    devices = words.SEEN[slot] + words.HELD_OUT[slot]
    said = [f"{room} {device}" for room in rooms for device in devices]
    assert len(said) == len(set(said))
    assert set(said).isdisjoint(devices)


def test_the_splits_share_no_pattern(examples: dict[str, list[make.Example]]) -> None:
    used = {split: {example.pattern for example in examples[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert used[one].isdisjoint(used[other])


def test_the_splits_share_no_pattern_without_its_optional_words_either() -> None:
    splits_of = defaultdict(set)
    for split in SPLITS:
        for pattern in itertools.chain.from_iterable(patterns.PATTERNS[split].values()):
            for form in forms(pattern):
                splits_of[form].add(split)
    assert {form: splits for form, splits in splits_of.items() if len(splits) > 1} == {}


def test_every_action_has_enough_patterns_and_uses_them_all(examples: dict[str, list[make.Example]]) -> None:
    for split, least, most in (("train", 8, 20), ("eval", 3, 20), ("test", 3, 20)):
        listed = patterns.PATTERNS[split]
        assert set(listed) == set(patterns.SHARES) == set(patterns.FIELDS)
        assert all(least <= len(set(choices)) <= most for choices in listed.values())
        used = {example.pattern for example in examples[split]}
        assert used == set(itertools.chain.from_iterable(listed.values()))


def test_held_out_values_occur_in_test_and_nowhere_else(rows: dict[str, list[dict[str, str]]]) -> None:
    held_out = set(itertools.chain.from_iterable(words.HELD_OUT.values()))
    said = [value for row in rows["test"] for value in json.loads(row["completion"]).values()]
    assert held_out <= set(said)
    known = [row["prompt"] for split in ("train", "eval") for row in rows[split]]
    assert [value for value in held_out if any(holds(prompt, value) for prompt in known)] == []


def test_about_half_of_the_test_rows_carry_a_held_out_value(examples: dict[str, list[make.Example]]) -> None:
    assert not any(example.held_out for split in ("train", "eval") for example in examples[split])
    assert 225 <= sum(example.held_out is not None for example in examples["test"]) <= 275


def test_held_out_ways_of_asking_are_not_in_training(rows: dict[str, list[dict[str, str]]]) -> None:
    asks = patterns.HELD_OUT_ORDER_WRAPS + patterns.HELD_OUT_REMARK_WRAPS
    shapes = [re.compile(ask.replace("{}", ".+")) for ask in asks]
    for shape in shapes:
        assert any(shape.fullmatch(row["prompt"]) for row in rows["test"])
        assert not any(shape.fullmatch(row["prompt"]) for split in ("train", "eval") for row in rows[split])
