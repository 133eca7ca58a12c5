"""Where a result comes from: edgetune/provenance.py."""

from __future__ import annotations

import shutil
import subprocess

from edgetune.provenance import provenance


def test_a_result_names_the_commit_of_the_clone_it_was_made_in(tmp_path, monkeypatch):
    def commit_of(clone):
        monkeypatch.setattr("edgetune.provenance.__file__", str(clone / "edgetune" / "provenance.py"))
        return provenance()["commit"]

    clone = tmp_path / "clone"
    clone.mkdir()
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (clone / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    shutil.copytree(clone, tmp_path / "changed")
    (tmp_path / "changed" / "file").write_text("two")
    assert len(commit_of(clone)) == 40
    assert commit_of(tmp_path / "changed") == f"{commit_of(clone)}+"
