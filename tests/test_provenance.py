"""Where a result comes from: edgetune/provenance.py."""

from __future__ import annotations

import subprocess

from edgetune.provenance import provenance


def test_a_result_names_the_commit_of_the_clone_it_was_made_in(tmp_path, monkeypatch):
    monkeypatch.setattr("edgetune.provenance.__file__", str(tmp_path / "edgetune" / "provenance.py"))
    assert provenance()["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    assert len(provenance()["commit"]) == 40
    (tmp_path / "file").write_text("two")
    assert provenance()["commit"].endswith("+")
