"""The ways to the device that benchmarks.survival compares: each makes a bundle or .gguf file of a run's merged model.

EdgeTune's own are made by its verbs, with nothing set but what a row's name says: what is measured is what a user gets.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir

BUILDER: Mapping[str, Mapping[str, str]] = {
    "onnxruntime-genai default int4": {},
    "onnxruntime-genai k_quant, int8 head": {"algo_config": "k_quant", "matmul_mixed_precision": "last_matmul:int8"},
}
"""The builder's own options."""
GGUF = ("Q4_0", "Q4_K_M", "Q8_0")
MODEL_SUFFIXES = (".onnx", ".data", ".gguf")
OLIVE_ROWS, OLIVE_TOKENS = 128, 512
"""Of training, on which Olive calibrates."""


class WayFailed(Exception):
    """A model that could not be made; the message is what its maker said."""


@dataclass(frozen=True)
class Way:
    """A way to the device."""

    name: str
    make: Callable[[RunDir, Path], Path]
    """(run, empty folder) -> the bundle or .gguf file in it. Raises WayFailed."""


def ways_of(recipe: Recipe, olive: str) -> list[Way]:
    """Those that a recipe's task has; `olive`: a Python that has olive-ai."""
    ours = [
        Way("EdgeTune default", partial(by_verb, "export")),
        Way("EdgeTune export-best", partial(by_verb, "export-best")),
    ]
    if recipe.model.task == "classification":
        peers = {"onnxruntime dynamic int8": dynamic_int8, "onnxruntime static int8": static_int8}
        return [*ours, *(Way(name, make) for name, make in peers.items())]
    return [
        *ours,
        Way("EdgeTune two bits", partial(by_verb, "export", "--precision", "int2")),
        *(Way(name, partial(by_builder, options=options)) for name, options in BUILDER.items()),
        Way("Olive GPTQ int4", partial(by_olive, python=olive)),
        *(Way(f"llama.cpp {kind}", partial(by_llama_cpp, kind=kind)) for kind in GGUF),
    ]


def model_file(path: Path) -> bool:
    """Whether a file holds weights."""
    return path.name.endswith(MODEL_SUFFIXES)


def by_verb(*arguments: Any) -> Path:
    """`edgetune VERB RUN --out FOLDER OPTIONS`; arguments: verb, options, run, folder."""
    verb, *options, run_dir, work = arguments
    out = work / "bundle"
    _call([sys.executable, "-m", "edgetune", verb, str(run_dir.path), "--out", str(out), *options])
    return out


def by_builder(
    run_dir: RunDir, work: Path, *, options: Mapping[str, str] | None = None, source: Path | None = None
) -> Path:
    """What onnxruntime-genai's builder makes of a folder, the merged one by default, with EdgeTune's settings."""
    from edgetune.bundle.settings import write_settings
    from edgetune.export.decoder import _import_builder
    from edgetune.export.silence import silenced
    from edgetune.runtime.bundle import open_bundle, write_manifest

    bundle, source, out = open_bundle(run_dir.bundle), str(source or run_dir.merged), work / "bundle"
    builder, _ = _import_builder()
    try:
        with silenced(), tempfile.TemporaryDirectory() as cache:
            given = [f"{name}={value}" for name, value in (options or {}).items()]
            parsed = builder.parse_extra_options("", source, str(out), "int4", "cpu", cache, given)
            builder.create_model("", source, str(out), "int4", "cpu", cache, **parsed)
    except (ValueError, NotImplementedError) as error:  # widths that are no multiple of its blocks, for one
        raise WayFailed(f"the builder fails: {error}") from None
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (run_dir.bundle / file).exists():
            shutil.copy(run_dir.bundle / file, out)
    write_settings(out, chat=bundle.chat_format, context_length=bundle.context_length)
    return write_manifest(dataclasses.replace(bundle, path=out, files={}, verified={})).path


def by_llama_cpp(run_dir: RunDir, work: Path, *, kind: str) -> Path:
    """A .gguf file that llama.cpp itself has quantised."""
    from benchmarks.gguf_model import quantize, write_gguf

    source = write_gguf(run_dir.merged, work / "model.gguf")
    return quantize(source, work / f"{kind}.gguf", kind)


def by_olive(run_dir: RunDir, work: Path, *, python: str) -> Path:
    """Olive's GPTQ with its own settings but for the rows, which are those of training, then the builder as above."""
    (work / "olive.json").write_text(json.dumps(_olive_config(run_dir, work)), encoding="utf-8")
    executable = sys.executable if python == "python" else python
    _call([executable, "-m", "olive", "run", "--config", str(work / "olive.json")], cwd=work)
    found = next((work / "olive").rglob("config.json"), None)
    if found is None:
        raise WayFailed("Olive wrote no model")
    return by_builder(run_dir, work, source=found.parent)


def _olive_config(run_dir: RunDir, work: Path) -> dict[str, Any]:
    """What `olive run` reads; writes the training rows' texts beside it."""
    from edgetune.bundle.generation import training_rows
    from edgetune.model.base import load_tokenizer

    rows = training_rows(run_dir.merged, load_recipe(run_dir.recipe), run_dir.cache).prepared.train
    tokenizer = load_tokenizer(run_dir.merged)
    chosen = [rows[number].input_ids for number in range(min(OLIVE_ROWS, len(rows)))]
    texts = [{"text": tokenizer.decode(ids)} for ids in chosen]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    data = {
        "name": "rows",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "json", "data_files": str(work / "rows.jsonl"), "split": "train"},
        "pre_process_data_config": {
            "type": "text_generation_huggingface_pre_process",
            "text_cols": ["text"],
            "strategy": "line-by-line",
            "add_special_tokens": False,
            "max_seq_len": OLIVE_TOKENS,
            "max_samples": OLIVE_ROWS,
        },
        "dataloader_config": {"batch_size": 1},
    }
    return {
        "input_model": {"type": "HfModel", "model_path": str(run_dir.merged.resolve())},
        "data_configs": [data],
        "passes": {"gptq": {"type": "Gptq", "bits": 4, "data_config": "rows"}},
        "output_dir": str(work / "olive"),
        "cache_dir": str(work / "cache"),
        "log_severity_level": 2,
    }


def dynamic_int8(run_dir: RunDir, work: Path) -> Path:
    """A classifier's graph as torch exports it, after onnxruntime's quantize_dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = _plain_graph(run_dir, work)
    (out := work / "bundle").mkdir()
    quantize_dynamic(plain, out / "model.onnx", weight_type=QuantType.QInt8)
    return _as_bundle(run_dir, out)


def static_int8(run_dir: RunDir, work: Path) -> Path:
    """The same after quantize_static, on the train rows' texts that EdgeTune rounds for."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Texts(CalibrationDataReader):
        """What onnxruntime is to see."""

        def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
            self.batches = batches

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    plain = _plain_graph(run_dir, work)
    (out := work / "bundle").mkdir()
    reader = Texts(_calibration_batches(run_dir))
    types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(plain, out / "model.onnx", reader, per_channel=True, **types)
    return _as_bundle(run_dir, out)


def _plain_graph(run_dir: RunDir, work: Path) -> Path:
    from benchmarks.encoder_speed import export_plain

    return export_plain(run_dir.merged, work / "plain.onnx")[0]


def _calibration_batches(run_dir: RunDir) -> Iterator[dict[str, Any]]:
    """Inputs of a graph: ids and mask of texts drawn as `edgetune export` draws them."""
    from edgetune.bundle.classification import draw_texts, token_batches
    from edgetune.data.prepare import examples
    from edgetune.model.base import load_tokenizer
    from edgetune.model.classifier import read_spec

    recipe = load_recipe(run_dir.recipe)
    texts = draw_texts(examples(recipe, "train"), recipe.export.calibration_rows, seed=recipe.train.seed)
    length = read_spec(run_dir.merged).max_length
    for ids, mask in token_batches(load_tokenizer(run_dir.merged), texts, max_length=length):
        yield {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def _as_bundle(run_dir: RunDir, out: Path) -> Path:
    """A classifier's graph with the run's tokenizer, calibrated on the eval rows as EdgeTune's bundles are."""
    from edgetune.bundle.classification import calibrated
    from edgetune.runtime.bundle import TOKENIZER, open_bundle, write_manifest

    shutil.copy(run_dir.bundle / TOKENIZER, out)
    bundle = dataclasses.replace(
        open_bundle(run_dir.bundle), path=out, precision="int8", grid=None, files={}, verified={}
    )
    return write_manifest(calibrated(write_manifest(bundle), load_recipe(run_dir.recipe))).path


def _call(command: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run a command. Raises WayFailed with the last line that it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing was said"]
        raise WayFailed(f"exit code {done.returncode}: {said[-1]}")


def three_bits() -> str:
    """Why no row has three bits: what onnxruntime says of a product with such weights; "" if it computes one."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    rows, block, bits = 8, 32, 3
    weights = helper.make_tensor(
        "w", TensorProto.UINT8, [rows, 1, block * bits // 8], bytes(rows * block * bits // 8), True
    )
    scales = helper.make_tensor("s", TensorProto.FLOAT, [rows, 1], [1.0] * rows)
    sizes = {"K": block, "N": rows, "bits": bits, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", block), ("y", rows))]
    graph = helper.make_graph([node], "three", ends[:1], ends[1:], [weights, scales])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.ones((1, block), np.float32)})
    except Exception as error:  # onnxruntime raises one type for each of its status codes
        return f"onnxruntime {onnxruntime.__version__}: {' '.join(str(error).split()).rpartition(' was false. ')[2]}"
    return ""
