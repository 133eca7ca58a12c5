"""Tiny real objects that many tests share, made on the spot."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from warm_process import OWNER, servers_folder, warm_ask

import edgetune  # noqa: F401  (before torch: how its threads wait)
from edgetune.train import curve
from edgetune.train.curve import draw_curve

REPOSITORY = Path(__file__).parent.parent
pytest_plugins = ["small_models"]


def pytest_configure(config: pytest.Config) -> None:
    """Of workers side by side (-n), each keeps to a core, and so do the processes that it starts."""
    os.environ.setdefault(OWNER, str(os.getpid()))
    worker = getattr(config, "workerinput", None)
    if worker:
        os.environ["OMP_NUM_THREADS"] = "1"
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})


def pytest_unconfigure() -> None:
    """The servers of warm processes end with pytest's first process."""
    if os.environ.get(OWNER) == str(os.getpid()):
        shutil.rmtree(servers_folder(), ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Below a failure, what one needs to understand it from the log alone."""
    if not (terminalreporter.stats.get("failed") or terminalreporter.stats.get("error")):
        return
    terminalreporter.section("where it failed")
    terminalreporter.line(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors")
    terminalreporter.line(f"processor: {_processor()}")
    terminalreporter.line(f"order: {_order(config)}")
    threads = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    terminalreporter.line(f"threads: {threads}, load: {os.getloadavg() if hasattr(os, 'getloadavg') else 'unknown'}")
    terminalreporter.line(" ".join(sorted({f"{item.name}=={item.version}" for item in distributions()})))


def _order(config: pytest.Config) -> str:
    """As the tests stand, or how pytest-randomly shuffled them."""
    if not config.pluginmanager.hasplugin("randomly"):
        return "as the tests stand"
    return f"make test-random ARGS='-p randomly --randomly-seed={config.getoption('randomly_seed')}'"


def _processor() -> str:
    """Its name, and which of the instructions it has that change how numbers are rounded."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = {name.strip(): value.strip() for name, _, value in lines}
    flags = found.get("flags", found.get("Features", "")).split()
    kinds = ("avx", "fma", "amx", "sse4", "f16c", "vnni", "asimd", "sve", "i8mm", "bf16")
    shown = [flag for flag in flags if any(kind in flag for kind in kinds)]
    return f"{found.get('model name', platform.machine())}: {' '.join(shown)}"


@pytest.fixture(scope="module", autouse=True)
def settled_heap() -> None:
    """What is alive between two files, modules for the most part, is never looked through for garbage again.

    Searches and trainings collect garbage themselves, which took a third of a second each time for the modules alone.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced_files() -> Iterator[None]:
    """No test waits for the disk to have a file, which is for power cuts: some milliseconds for each of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn_curves() -> Iterator[None]:
    """No training draws its loss curve, a tenth of a tiny one, but for tests that ask for `drawn_curves`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "draw_curve", lambda _, out, **__: out.write_bytes(b"not drawn"))
        yield


@pytest.fixture
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw their loss curve, as they do for users."""
    monkeypatch.setattr(curve, "draw_curve", draw_curve)


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """Models are measured in processes that start at once, see warm_process.py."""
    from edgetune.bench import measure
    from edgetune.evaluate import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "ask", warm_ask)
        patch.setattr(measure, "ask", warm_ask)
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as a Hugging Face folder: byte-level BPE of 512 pieces, chat format of edgetune:nano."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.assets.nano.tokenizer import END, SPECIAL_TOKENS, save_tokenizer

    folder = tmp_path_factory.mktemp("tiny-base")
    rows = (REPOSITORY / "edgetune/assets/home/train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([" ".join(json.loads(row).values()) for row in rows], trainer)
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=tokenizer.token_to_id(END),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 prompt/completion rows in a .jsonl file."""
    path = tmp_path_factory.mktemp("tiny-rows") / "rows.jsonl"
    rows = (REPOSITORY / "edgetune/assets/home/train.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path, tiny_rows: Path) -> Callable[..., str]:
    """`tiny_recipe(lora={"r": 8}, ...)`: the TOML of a recipe that trains `tiny_base` on `tiny_rows` for 20 steps and
    has answers of 8 tokens, with these values in its tables.
    """
    own: dict[str, dict[str, object]] = {
        "model": {"base": str(tiny_base)},
        "data": {"train": str(tiny_rows), "max_seq_len": 128},
        "lora": {"r": 4},
        "train": {"max_steps": 20, "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.01},
        "evaluate": {"max_new_tokens": 8},
    }

    def make(**tables: dict[str, object]) -> str:
        lines = []
        for name in {**own, **tables}:
            values = own.get(name, {}) | tables.get(name, {})
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        return "\n".join(lines) + "\n"

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., str]) -> Path:
    """A folder with tiny.toml and the finished run of it, runs/tiny: for tests that work on a copy."""
    from click.testing import CliRunner

    from edgetune.cli import main

    folder = tmp_path_factory.mktemp("finished")
    recipe = tiny_recipe(
        model={"compute_dtype": "float32"},
        lora={"r": 8},
        train={"max_steps": 40, "learning_rate": 0.02},
        export={"calibration_rows": 0, "repair_steps": 0},
        evaluate={"metric": "loss"},
    )
    (folder / "tiny.toml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(main, ["run", "tiny.toml"])
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets: $EDGETUNE_DATA, or ../shared/data beside the repository."""
    path = Path(os.environ.get("EDGETUNE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        reason = f"{path}: no such folder; set EDGETUNE_DATA to the public data sets"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` as an fp32 bundle, straight from onnxruntime-genai's builder."""
    from edgetune.runtime.bundle import Bundle, ChatFormat, write_manifest

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    folder = tmp_path_factory.mktemp("tiny-bundle")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        arguments = ("", str(tiny_base), str(folder), "fp32", "cpu", str(tmp_path_factory.mktemp("cache")))
        create_model(*arguments, **parse_extra_options(*arguments, []))
    config = json.loads((tiny_base / "tokenizer_config.json").read_text(encoding="utf-8"))
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    chat = ChatFormat(
        template=config["chat_template"],
        bos_token=config["bos_token"],
        eos_token=config["eos_token"],
        bos_id=genai["bos_token_id"],
        eos_ids=(genai["eos_token_id"],),
    )
    bundle = Bundle(path=folder, name="tiny", precision="fp32", grid=None, chat=chat, context_length=512)
    return write_manifest(bundle).path


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers as a Hugging Face folder, with a WordPiece tokenizer of the demo's words."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    rows = (REPOSITORY / "edgetune/assets/home/train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    wordpiece = BertWordPieceTokenizer()
    wordpiece.train_from_iterator([json.loads(row)["prompt"] for row in rows], vocab_size=600, show_progress=False)
    wordpiece.save(str(folder / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=wordpiece.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification bundle made by hand: "card", "money" and "weather" each vote 8 for their label, others nothing.

    A padding token would vote 1000 for all: only the mask keeps it out.
    """
    import numpy as np
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    from edgetune.runtime.bundle import Bundle, ClassifierFormat, write_manifest

    labels = ("card", "money", "weather")
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *labels)
    folder = tmp_path_factory.mktemp("word-bundle")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    votes = np.zeros((len(words), len(labels)), np.float32)
    votes[0], votes[4:] = 1000, 8 * np.eye(3)
    int64, floats = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    graph = make_graph(
        [
            make_node("Gather", ["votes", "input_ids"], ["each"]),
            make_node("Cast", ["attention_mask"], ["mask"], to=floats),
            make_node("Unsqueeze", ["mask", "last"], ["column"]),
            make_node("Mul", ["each", "column"], ["counted"]),
            make_node("ReduceSum", ["counted", "first"], ["logits"], keepdims=0),
        ],
        "words",
        [make_tensor_value_info(name, int64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")],
        [make_tensor_value_info("logits", floats, ["batch", len(labels)])],
        [
            onnx.numpy_helper.from_array(votes, "votes"),
            onnx.numpy_helper.from_array(np.array([-1]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "first"),
        ],
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10), str(folder / "model.onnx"))
    classifier = ClassifierFormat(labels=labels, multi_label=False, max_length=12, pad_id=0)
    bundle = Bundle(
        path=folder,
        name="words",
        precision="fp32",
        grid=None,
        chat=None,
        context_length=12,
        task="classification",
        classifier=classifier,
    )
    return write_manifest(bundle).path


@pytest.fixture
def labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair as if nothing were far from the merged model: one that was never trained has all to learn from labels."""
    monkeypatch.setattr("edgetune.quantize.truth.Truth.divergence", lambda *_: 0.0)
