"""Rows whose values change places: question and answer stay together."""

from __future__ import annotations

import json

from edgetune.data.formats import Example, Message
from edgetune.data.swap import Values, copied_values


def an_example(question: str, answer: dict[str, object]) -> Example:
    return Example((Message("user", question), Message("assistant", json.dumps(answer))), None, "row")


PLAY = [
    an_example(f"play {track} by {artist}", {"intent": "play", "slots": {"track": track, "artist": artist}})
    for track, artist in (("blue monday", "new order"), ("one", "u2"), ("help", "the beatles"))
]
WEATHER = an_example("rain in paris", {"intent": "weather", "slots": {"city": "paris"}})


EVERYWHERE = {'."intent"', '."slots"."track"', '."slots"."artist"', '."track"', '."x"', '."y"', '."count"'}


def test_copied_values_are_those_that_stand_once_in_both() -> None:
    assert set(copied_values(PLAY[0], EVERYWHERE - {'."intent"'}).values()) == {"blue monday", "new order"}
    assert copied_values(an_example("play one for one", {"track": "one"}), EVERYWHERE) == {}
    assert copied_values(an_example("play ones", {"track": "one"}), EVERYWHERE) == {}  # no whole word
    assert copied_values(an_example("a a b", {"x": "b", "y": "b"}), EVERYWHERE) == {}  # twice in the answer
    assert copied_values(an_example("it is 5", {"count": 5}), EVERYWHERE) == {}
    assert list(copied_values(an_example("play 50 clásicos", {"x": "50 clásicos"}), EVERYWHERE).values()) == [
        "50 clásicos"
    ]


def test_texts_and_answers_that_are_no_json_are_left_alone() -> None:
    assert copied_values(Example((), "plain text", "row"), EVERYWHERE) == {}
    assert copied_values(Example((Message("user", "a"), Message("assistant", "a")), None, "row"), EVERYWHERE) == {}
    assert copied_values(Example((Message("user", "a"),), None, "row"), EVERYWHERE) == {}


def test_a_word_of_the_question_is_no_value_where_its_field_is_not_copied_as_a_rule() -> None:
    """ "play" stands in the question and is the intent; "weather" is an intent that does not."""
    copies = Values(lambda: [*PLAY, WEATHER], seed=0).copies(PLAY[0], 30, seed=0)
    assert {json.loads(copy.messages[-1].content)["intent"] for copy in copies} == {"play"}


def test_values_change_places_in_question_and_answer_alike() -> None:
    values = Values(lambda: [*PLAY, WEATHER], seed=0)
    copies = list(values.copies(PLAY[0], 20, seed=0))
    assert copies
    for copy in copies:
        slots = json.loads(copy.messages[-1].content)["slots"]
        assert copy.messages[0].content == f"play {slots['track']} by {slots['artist']}"
        assert slots["track"] in {"blue monday", "one", "help"}
        assert slots["artist"] in {"new order", "u2", "the beatles"}
        assert copy.messages != PLAY[0].messages


def test_values_of_another_intent_are_never_taken() -> None:
    travel = an_example("fly to rome", {"intent": "fly", "slots": {"city": "rome"}})
    copies = Values(lambda: [WEATHER, travel], seed=0).copies(WEATHER, 10, seed=0)
    assert list(copies) == []  # the only other city belongs to another intent


def test_the_same_seed_gives_the_same_copies() -> None:
    values = Values(lambda: [*PLAY, WEATHER], seed=0)
    assert list(values.copies(PLAY[1], 5, seed=1)) == list(values.copies(PLAY[1], 5, seed=1))
    assert list(values.copies(PLAY[1], 5, seed=1)) != list(values.copies(PLAY[1], 5, seed=2))


def test_prepared_train_rows_hold_the_copies_and_eval_rows_do_not(tiny_base, tmp_path) -> None:
    from edgetune.data.prepare import prepare
    from edgetune.model.base import load_tokenizer
    from edgetune.recipe import DataTable, ModelTable, Recipe

    lines = [
        json.dumps(
            {"prompt": f"play {n} by band{n}", "completion": json.dumps({"track": str(n), "artist": f"band{n}"})}
        )
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    tokenizer = load_tokenizer(tiny_base)

    def counts(copies: int) -> tuple[int, int]:
        data = DataTable(train=str(tmp_path / "rows.jsonl"), eval_fraction=0.2, swapped_copies=copies)
        found = prepare(Recipe(ModelTable(base="x"), data), tokenizer, cache=tmp_path / "cache")
        return len(found.train), len(found.eval)

    plain, swapped = counts(0), counts(2)
    assert swapped[1] == plain[1]
    assert 1.5 * plain[0] < swapped[0] <= 3 * plain[0]
