"""`edgetune verify`: bundles that lost the fine-tune on their way are refused, whatever went wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edgetune.bundle.generation import build_bundle
from edgetune.cli import main
from edgetune.files import read_json
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir


@pytest.fixture
def run_dir(finished_run, tmp_path, monkeypatch) -> RunDir:
    """A copy of the finished run, in the current folder."""
    shutil.copytree(finished_run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return RunDir(Path("runs/tiny"))


def verify(*arguments: str) -> object:
    return CliRunner().invoke(main, ["verify", "runs/tiny/bundle", *arguments])


def _export(run_dir: RunDir, merged: Path) -> None:
    """Put a bundle of another merged folder in place of the run's, with a manifest that fits its files."""
    shutil.rmtree(run_dir.bundle)
    run_dir.bundle.mkdir()
    build_bundle(merged, run_dir.bundle, load_recipe(run_dir.recipe), is_chat=True)


def _changed(run_dir: RunDir, tmp_path: Path, change) -> Path:
    """A copy of the merged folder with changed tensors."""
    folder = tmp_path / "broken"
    shutil.copytree(run_dir.merged, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_sound_bundle_is_verified_and_layers_are_shown(run_dir):
    done = verify()
    assert done.exit_code == 0, done.stderr
    assert "of the gain in loss kept" in done.stdout
    assert "nats a token from the fine-tune, at most 0.1 allowed" in done.stdout
    assert "correlation" in done.stdout
    assert read_json(run_dir.bundle / "edgetune.json")["verified"]["passed"] is True


def test_a_fresh_export_says_that_its_gain_is_not_measured(run_dir):
    done = CliRunner().invoke(main, ["export", str(run_dir.path), "--force"])
    assert done.exit_code == 0, done.stderr
    assert "not measured yet: edgetune verify runs/tiny/bundle" in done.stderr
    assert read_json(run_dir.bundle / "edgetune.json")["verified"]["gain_kept"] is None


def test_without_the_merged_model_one_line_says_how_to_make_it(run_dir):
    shutil.rmtree(run_dir.merged)
    done = verify()
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith(f"to compare the bundle with; edgetune merge {run_dir.path.resolve()}")


def _drop_adapter(run_dir: RunDir, _tmp_path: Path, tiny_base: Path) -> None:
    _export(run_dir, tiny_base)


def _zero_layer(run_dir: RunDir, tmp_path: Path, _tiny_base: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.startswith("model.layers.1.") and name.endswith("proj.weight"):
                tensors[name].zero_()

    _export(run_dir, _changed(run_dir, tmp_path, zero))


def _wrong_base(run_dir: RunDir, tmp_path: Path, tiny_base: Path) -> None:
    def other(tensors: dict[str, torch.Tensor]) -> None:
        """The adapter's change on the weights of another base of the same shape."""
        base = load_file(tiny_base / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for name in tensors:
            if name.endswith("proj.weight"):
                noise = torch.randn(tensors[name].shape, generator=generator) * base[name].float().std()
                tensors[name] += noise - base[name].float()

    _export(run_dir, _changed(run_dir, tmp_path, other))


@pytest.mark.parametrize("breakage", [_drop_adapter, _zero_layer, _wrong_base])
def test_a_bundle_that_lost_the_fine_tune_is_refused(run_dir, tmp_path, tiny_base, breakage):
    breakage(run_dir, tmp_path, tiny_base)
    done = verify()
    assert done.exit_code == 5, done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert "of the gain in loss kept" in line
    assert "export.repair_steps" in line
    assert "--force" in line
    assert read_json(run_dir.bundle / "edgetune.json")["verified"]["passed"] is False


def test_a_bundle_that_has_become_another_model_is_refused_whatever_its_gain(run_dir, tmp_path, tiny_base):
    """The adapter's change three times as large, and no gain asked for: closeness alone refuses it."""

    def more(tensors: dict[str, torch.Tensor]) -> None:
        base = load_file(tiny_base / "model.safetensors")
        for name in tensors:
            if name.endswith("proj.weight"):
                tensors[name] += (2.0 * (tensors[name].float() - base[name].float())).to(tensors[name].dtype)

    _export(run_dir, _changed(run_dir, tmp_path, more))
    done = verify("--min-gain-kept", "0")
    assert done.exit_code == 5, done.stdout + done.stderr
    assert "nats a token from the fine-tune, more than the 0.1 allowed" in done.stderr.splitlines()[-1]
    found = read_json(run_dir.results / "verify/survival.json")
    assert (found["kept_enough"], found["is_close"]) == (True, False)
    assert found["closeness"]["kl"] > 0.1
    assert verify("--min-gain-kept", "0", "--set", "export.max_kl=9").exit_code == 0


def test_force_accepts_it_and_the_bundle_says_so(run_dir, tmp_path, tiny_base):
    _drop_adapter(run_dir, tmp_path, tiny_base)
    done = verify("--force", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] is True
    verified = read_json(run_dir.bundle / "edgetune.json")["verified"]
    assert verified["passed"] is True
    assert verify().exit_code == 0  # accepted is accepted, until the bundle is another one
    assert verified["gain_kept"]["accepted"] is True


def test_a_run_whose_bundle_keeps_too_little_exits_5_with_its_table(run_dir):
    coarse = ("export.precision=int2", "export.method=rtn", "export.min_gain_kept=1")
    done = CliRunner().invoke(main, ["run", "tiny.toml", *(word for key in coarse for word in ("--set", key))])
    assert done.exit_code == 5, done.stderr
    assert done.stdout.startswith("model")
    assert "at least 100.0% is asked for" in done.stderr.splitlines()[-1]
    assert read_json(run_dir.bundle / "edgetune.json")["verified"]["passed"] is False


def test_a_changed_byte_is_found_before_anything_is_measured(run_dir):
    data = bytearray((run_dir.bundle / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (run_dir.bundle / "model.onnx.data").write_bytes(data)
    done = verify()
    assert done.exit_code == 2
    assert "model.onnx.data" in done.stderr.splitlines()[-1]


def test_a_bundle_outside_a_run_is_one_line(run_dir, tmp_path):
    shutil.copytree(run_dir.bundle, tmp_path / "alone")
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "alone")])
    assert done.exit_code == 2
    assert "is no bundle in a run folder" in done.stderr
