"""Loading: cores counted, telemetry off, a missing library said."""

from __future__ import annotations

import os
import sys

import pytest

from edgetune.errors import MissingExtraError
from edgetune.runtime import session


def test_two_hyper_threads_are_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(session, "_siblings", lambda cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
    monkeypatch.setattr(session, "_quota_cores", lambda: 8)
    assert session.usable_cores() == 2


def test_a_quota_below_the_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(session, "_siblings", str)
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
