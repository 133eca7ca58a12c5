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


def test_a_result_names_the_machine_with_its_memory_and_gpus(tmp_path, monkeypatch):
    from edgetune import provenance as module

    def told(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        module._gpus.cache_clear()
        return module.provenance()["gpus"]

    try:
        gpu = {"name": "NVIDIA H200, 141GB", "memory_bytes": 143771 * 1024**2, "driver": "570.1"}
        assert told("echo 'NVIDIA H200, 141GB, 143771, 570.1'") == [gpu]
        assert told("echo 'NVIDIA Thor, [N/A], 580.0'") == [
            {"name": "NVIDIA Thor", "memory_bytes": None, "driver": "580.0"}
        ]
        assert told("echo no driver; exit 9") == []
        assert told("echo nonsense") == []
    finally:
        module._gpus.cache_clear()
    assert module.provenance()["memory_bytes"] > 1 << 28
    assert module.provenance()["cores"] >= 1


def test_a_command_tells_nobody_where_a_home_folder_is(monkeypatch):
    command = ["/home/ann/bin/edgetune", "run", "/home/ann/a.toml", "--out=/home/ann/x", "lora.r=8"]
    monkeypatch.setattr("sys.argv", command)
    assert provenance()["command"] == ["edgetune", "run", "a.toml", "--out=x", "lora.r=8"]
