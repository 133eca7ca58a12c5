"""Loading: cores counted, telemetry off, a missing library said."""

from __future__ import annotations

import os
import sys

import pytest

from edgetune.errors import MissingExtraError, PromptError
from edgetune.runtime import session


def test_two_hyper_threads_are_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(session, "siblings", lambda cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
    monkeypatch.setattr(session, "_quota_cores", lambda: 8)
    assert session.usable_cores() == 2


def test_a_quota_below_the_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(session, "siblings", str)
    monkeypatch.setattr(session, "_quota_cores", lambda: 3)
    assert session.usable_cores() == 3


def test_where_the_system_does_not_say_the_library_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert session.usable_cores() is None


def test_this_machine_has_a_core() -> None:
    assert session.usable_cores() in (None, *range(1, 4097))


def test_a_missing_library_is_said_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match='pip install "onnxruntime-genai') as caught:
        session.import_genai()
    assert caught.value.exit_code == 3


def test_telemetry_is_off_before_the_library_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError):
        session.import_genai()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_threads_spin_for_as_long_as_they_are_told() -> None:
    allowed, duration = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"
    assert session.spin_options(0)[allowed] == "0"
    assert session.spin_options(50) == {allowed: "1", duration: "50"}
    for wrong in (-1, session.MOST_SPIN_US + 1):
        with pytest.raises(PromptError, match=f"spin_us is {wrong}, must be from 0 to 1,000,000"):
            session.spin_options(wrong)
