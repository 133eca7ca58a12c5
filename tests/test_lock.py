"""One process at a time: edgetune/lock.py."""

from __future__ import annotations

import os
import sys

import pytest

from edgetune.errors import RunError
from edgetune.lock import only_process
from edgetune.run_dir import RunDir


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_second_process_in_the_folder_is_refused_until_the_first_ends(tmp_path):
    run_dir = RunDir(tmp_path / "r")
    with (
        only_process(run_dir),
        pytest.raises(RunError, match="another process is at work in it; wait"),
        only_process(run_dir),
    ):
        pytest.fail("two at once")
    with only_process(run_dir):
        assert os.listdir(run_dir.path) == []
