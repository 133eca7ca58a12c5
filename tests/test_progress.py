"""Events on their way from a stage to who watches it."""

from collections.abc import Mapping
from typing import Any

from edgetune.progress import as_stage, silent


def test_events_are_told_on_as_those_of_a_stage_and_are_not_changed_themselves() -> None:
    told: list[Mapping[str, Any]] = []
    event = {"stage": "evaluate", "step": 3}
    as_stage(told.append, "evaluate bundle")(event)
    assert told == [{"stage": "evaluate bundle", "step": 3}]
    assert event == {"stage": "evaluate", "step": 3}


def test_nobody_has_to_watch() -> None:
    as_stage(None, "evaluate bundle")({"stage": "evaluate"})
    silent({"stage": "evaluate"})
