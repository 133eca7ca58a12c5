"""edgetune/threads.py: waiting threads spin for a moment, unless the user has said how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgetune.threads import CHOICES, SETTINGS, wait_politely


def test_a_short_spin_is_set_where_nothing_is_said() -> None:
    environment: dict[str, str] = {"OMP_NUM_THREADS": "2"}
    assert wait_politely(environment)
    assert environment == {"OMP_NUM_THREADS": "2", **SETTINGS}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_the_user_stays_the_only_one(name: str) -> None:
    environment = {name: "0"}
    assert not wait_politely(environment)
    assert environment == {name: "0"}


@pytest.mark.parametrize("first", ["import edgetune", "from edgetune.cli import main", "import edgetune.child_process"])
def test_it_is_set_before_torch_can_be_loaded_and_children_have_it(first: str) -> None:
    code = f"{first}; import os; print(os.environ['GOMP_SPINCOUNT'], 'torch' in __import__('sys').modules)"
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SETTINGS["GOMP_SPINCOUNT"], "False"]
