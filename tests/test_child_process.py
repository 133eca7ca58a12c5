"""What a child process says when it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgetune.child_process import ask

SCRIPT = """
from edgetune.child_process import answer

class OutOfMemoryError(RuntimeError):
    "As torch has it."

def fail(request, notify):
    raise {error}

raise SystemExit(answer(fail))
"""


@pytest.mark.parametrize("error", ["MemoryError()", "OutOfMemoryError('CUDA out of memory')"])
def test_a_lack_of_memory_is_told_as_such_on_a_gpu_too(error):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error)],
        input='{"name": "merged"}',
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (4, "")
    told = json.loads(done.stdout)
    assert told == {"error": "OutOfMemoryError", "message": "merged: memory ran out", "cure": ""}


def test_any_other_failure_keeps_its_trace():
    script = SCRIPT.format(error="RuntimeError('of a kind not known')")
    done = subprocess.run([sys.executable, "-c", script], input="{}", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "of a kind not known" in done.stderr


@pytest.mark.parametrize("module", ["edgetune.bench.child", "edgetune.evaluate.child"])
def test_what_measures_answers_in_a_fresh_process(module):
    """Most tests call its main in a process that stands ready, see warm_process.py."""
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        ask(["-m", module], {"name": "it", "measure": "nothing", "task": "nothing"}, name="it")
