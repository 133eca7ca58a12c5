"""What a run would stumble over later: `edgetune plan` refuses each in one line, with the cure, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edgetune import plan_checks
from edgetune.cli import main
from edgetune.recipe import as_toml
from edgetune.run_dir import RunDir, claim
from edgetune.train import trackers

LABELLED = [{"text": f"{word} the lamp {n}", "label": word} for n in range(4) for word in ("dim", "off")]
CHAT = [{"role": "user", "content": "lamp on"}, {"role": "assistant", "content": "done"}]
PATIENT = "a very long question about the lamp in the kitchen " * 30


class Kit:
    """Makes the small files that a case is about, all in one folder."""

    def __init__(self, folder: Path, base: Path, encoder: Path, rows: Path) -> None:
        self.folder, self.base, self.encoder, self.rows = folder, base, encoder, rows

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def jsonl(self, rows: list[dict[str, Any]], name: str = "bad.jsonl") -> str:
        return self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def labelled(self, **settings: Any) -> dict[str, Any]:
        """Settings of a classifier's recipe that is sound but for these."""
        found = {"model.base": str(self.encoder), "model.task": "classification"}
        if "data.train" not in settings:
            found["data.train"] = self.jsonl(LABELLED, "labelled.jsonl")
        return {**found, **settings}

    def copy(self, *, of: Path | None = None, without: str = "", config: dict[str, Any] | None = None) -> Path:
        """A copy of the base with other values in its config.json, without some files."""
        folder = self.folder / "changed-base"
        shutil.copytree(of or self.base, folder)
        for path in folder.glob(without) if without else ():
            path.unlink()
        if config:
            old = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**old, **config}))
        return folder

    def with_config(self, **config: Any) -> dict[str, Any]:
        return {"model.base": str(self.copy(config=config))}

    def without(self, files: str, **others: str | bytes) -> dict[str, Any]:
        folder = self.copy(without=files)
        for name, content in others.items():
            self.file(f"{folder.name}/{name.replace('__', '.')}", content)
        return {"model.base": str(folder)}

    def truncated(self) -> dict[str, Any]:
        folder = self.copy()
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        return {"model.base": str(folder)}

    def adapter(self, config: dict[str, Any] | None = None, *, module: str = "model.layers.0.self_attn.q_proj") -> str:
        """A LoRA on one module of the base, 64 by 64, with other values in its adapter_config.json."""
        folder = self.folder / "an-adapter"
        folder.mkdir()
        rows = 512 if "embed" in module else 64
        a, b = torch.zeros(2, 64), torch.zeros(rows, 2)
        names = {f"base_model.model.{module}.lora_{part}.weight": tensor for part, tensor in (("A", a), ("B", b))}
        save_file(names, folder / "adapter_model.safetensors")
        told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module.split(".")[-1]]}
        (folder / "adapter_config.json").write_text(json.dumps({**told, **(config or {})}))
        return str(folder)

    def template(self, text: str | None, **values: Any) -> dict[str, Any]:
        """The base with another chat template."""
        folder = self.copy(without="chat_template*")
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config.pop("chat_template", None)
        config |= values if text is None else {"chat_template": text, **values}
        path.write_text(json.dumps(config))
        return {"model.base": str(folder)}

    def split_folder(self, name: str, content: str) -> dict[str, Any]:
        """A data folder whose train split is sound and whose other is not."""
        self.file("data/train.jsonl", self.rows.read_bytes())
        self.file(f"data/{name}", content)
        return {"data.train": str(self.folder / "data")}

    def wider(self) -> dict[str, Any]:
        """A base one of whose weights has another shape than its config.json says."""
        folder = self.copy()
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.zeros(80)
        save_file(tensors, folder / "model.safetensors")
        return {"model.base": str(folder)}

    def other_run(self) -> list[str]:
        """-o and the folder of another recipe's run."""
        run_dir = RunDir(self.folder / "taken")
        claim(run_dir, '[model]\nbase = "other"\n[data]\ntrain = "t"\n')
        run_dir.adapter.mkdir()
        return ["-o", str(run_dir.path)]


Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A recipe's settings, a piece of what is told, the exit code, more options of the command line."""

    settings: Settings | Callable[[Kit], Settings]
    told: str
    code: int = 2
    options: Callable[[Kit], list[str]] | None = None


ROWS = {
    "tools in a late row under a template that does not write them": Case(
        lambda k: {
            "data.train": k.jsonl(
                [{"prompt": f"{n}", "completion": "a"} for n in range(210)]
                + [{"prompt": "x", "completion": "y", "tools": [{"type": "function", "function": {"name": "f"}}]}]
            )
        },
        "bad.jsonl:211: tools: the chat template makes no use of this; leave them out",
    ),
    "no such file": Case({"data.train": "nowhere.jsonl"}, "give a data file, a folder, a hub id"),
    "an empty file": Case(lambda k: {"data.train": k.file("bad.jsonl", "")}, "bad.jsonl: holds no rows"),
    "an empty file of a set format": Case(
        lambda k: {"data.train": k.file("bad.jsonl", "\n"), "data.format": "messages"}, "bad.jsonl: holds no rows"
    ),
    "bytes": Case(lambda k: {"data.train": k.file("bad.jsonl", b"\x89PNG\r\n\xff\xfe")}, "save the file as UTF-8"),
    "latin-1": Case(
        lambda k: {"data.train": k.file("bad.csv", "prompt,completion\nf\xfcr,x\n".encode("latin-1"))},
        "bad.csv:2: is not UTF-8",
    ),
    "utf-16": Case(
        lambda k: {"data.train": k.file("bad.jsonl", '{"prompt": "a"}'.encode("utf-16"))}, "save the file as UTF-8"
    ),
    "a spreadsheet": Case(lambda k: {"data.train": k.file("bad.xlsx", b"PK")}, "known: .jsonl, .json, .csv"),
    "csv called jsonl": Case(
        lambda k: {"data.train": k.file("bad.jsonl", "prompt,completion\na,b\n")}, "bad.jsonl:1: not valid JSON"
    ),
    "no parquet": Case(lambda k: {"data.train": k.file("bad.parquet", "PAR1")}, "cannot be read as parquet"),
    "gzip cut off": Case(lambda k: {"data.train": k.file("bad.jsonl.gz", b"\x1f\x8b\x08")}, "copy or make it again"),
    "a folder of pictures": Case(
        lambda k: {"data.train": str(Path(k.file("pictures/cat.png", b"x")).parent)}, "holds no data files"
    ),
    "a variable that is not set": Case(
        {"data.train": "$NO_SUCH_VARIABLE_HERE/x.jsonl"}, "set NO_SUCH_VARIABLE_HERE to a folder"
    ),
    "other columns": Case(
        lambda k: {"data.train": k.jsonl([{"query": "a", "reply": "b"}])}, 'columns = { prompt = "question"'
    ),
    "a column that is not there": Case(
        {"data.columns": {"prompt": "question"}}, "no column 'question'; columns found: prompt, completion"
    ),
    "a column twice": Case(
        lambda k: {"data.train": k.file("bad.csv", "prompt,prompt\na,b\n")}, "'prompt' occurs twice in the header"
    ),
    "a number for a chat": Case(lambda k: {"data.train": k.jsonl([{"messages": 3}])}, "must be a list of messages"),
    "a role that nobody knows": Case(
        lambda k: {"data.train": k.jsonl([{"messages": [{"role": "alien", "content": "x"}]}])},
        "known: system, developer, user, assistant, tool, function",
    ),
    "nobody answers": Case(
        lambda k: {"data.train": k.jsonl([{"messages": CHAT[:1]}])}, "has no assistant message, so nothing to learn"
    ),
    "preferences": Case(
        lambda k: {"data.train": k.jsonl([{"prompt": "a", "completion": "b", "rejected": "c"}])},
        "leave the column out, or the rows with it",
    ),
    "one row": Case(lambda k: {"data.train": k.jsonl([{"prompt": "a", "completion": "b"}])}, "name rows in data.eval"),
    "rows that are all alike": Case(
        lambda k: {"data.train": k.jsonl([{"prompt": "a", "completion": "b"}] * 5)}, "name rows in data.eval"
    ),
    "all rows too long": Case(
        lambda k: {"data.train": k.jsonl([{"prompt": f"{PATIENT}{n}", "completion": "b"} for n in range(3)])},
        "2 longer than 128 tokens, 0 without a token to learn; raise data.max_seq_len; the longest row has",
    ),
    "answers cut away": Case(
        lambda k: {
            "data.train": k.jsonl([{"prompt": f"{PATIENT}{n}", "completion": "b"} for n in range(300)]),
            "data.eval": str(k.rows),
            "data.too_long": "truncate",
        },
        "0 longer than 128 tokens, 300 without a token to learn; raise data.max_seq_len",
    ),
    "a row too long and none may be": Case(
        lambda k: {
            "data.train": k.jsonl([{"prompt": PATIENT, "completion": "b"}]),
            "data.eval": str(k.rows),
            "data.too_long": "error",
        },
        'raise it, or set data.too_long = "drop" or "truncate"',
    ),
    "empty answers": Case(
        lambda k: {"data.train": k.jsonl([{"prompt": f"{n}", "completion": ""} for n in range(4)])},
        "3 without a token to learn; fill the answers, or set data.loss_on",
    ),
    "eval rows too long": Case(
        lambda k: {"data.eval": k.jsonl([{"prompt": PATIENT, "completion": "b"}])},
        "no eval row can be used: 1 longer than 128 tokens, 0 without a token to learn; raise data.max_seq_len",
    ),
    "eval rows of another task": Case(
        lambda k: {"data.eval": k.jsonl(LABELLED), "evaluate.metric": "exact_match"},
        'which exact_match needs, like 7 more of 8 rows; set evaluate.metric = "loss"',
    ),
    "no test file": Case({"data.test": "nowhere.csv"}, "nowhere.csv: no such file or folder; give a data"),
    "a broken test split": Case(lambda k: k.split_folder("test.jsonl", "{"), "test.jsonl:1: not valid JSON"),
    "a broken eval split": Case(lambda k: k.split_folder("dev.jsonl", '{"a": 1}\n'), "dev.jsonl:1: no format has"),
    "more folds than rows": Case(
        lambda k: {
            "data.train": k.jsonl([{"prompt": f"{n}", "completion": "b"} for n in range(3)]),
            "evaluate.folds": 9,
        },
        "lower evaluate.folds",
    ),
}
SCORES = {
    "texts have no answer": Case(
        lambda k: {"data.train": k.jsonl([{"text": f"once upon a time {n}"} for n in range(16)])},
        'which exact_match needs; set evaluate.metric = "loss"',
    ),
    "answers are no json": Case(
        lambda k: {"data.test": k.jsonl([{"messages": CHAT}] * 3), "evaluate.metric": "json"},
        "the reference is not JSON: 'done', like 2 more of 3 rows; set evaluate.metric",
    ),
    "answers have no number": Case(
        lambda k: {"data.test": k.jsonl([{"messages": CHAT}]), "evaluate.metric": "final_number"},
        "the reference has no number: 'done'; set evaluate.metric",
    ),
    "no check is named": Case({"evaluate.metric": "check"}, "name the Python file in evaluate.check"),
    "the check is not there": Case(
        {"evaluate.metric": "check", "evaluate.check": "nowhere.py"}, "evaluate.check names a Python file"
    ),
    "the check is no python": Case(
        lambda k: {"evaluate.metric": "check", "evaluate.check": k.file("c.py", "def check(:\n")},
        "c.py: cannot be imported: SyntaxError",
    ),
    "the check has another name": Case(
        lambda k: {"evaluate.metric": "check", "evaluate.check": k.file("c.py", "def score(a, b): return 1\n")},
        "c.py: has no function check; evaluate.check needs `def check(answer, row) -> bool`",
    ),
    "test rows longer than the context": Case(
        {"export.max_length": 8}, "no row to evaluate on fits 8 tokens; raise export.max_length"
    ),
    "a metric of labels": Case({"evaluate.metric": "macro_f1"}, 'needs model.task = "classification"'),
}
BASES = {
    "no such folder": Case({"model.base": "./no-such-model"}, "give a model folder, a hub id like org/name"),
    "a file": Case(lambda k: {"model.base": k.file("a.bin", b"x")}, "give the folder that holds the model's config"),
    "an empty folder": Case(
        lambda k: {"model.base": str(Path(k.file("empty/readme", "")).parent)},
        "give the folder of a Hugging Face model",
    ),
    "a config that is damaged": Case(
        lambda k: k.without("config.json", config__json="{"), "config.json: cannot be read"
    ),
    "no weights": Case(lambda k: k.without("*.safetensors"), "give a folder with the model's safetensors weights"),
    "weights cut off": Case(Kit.truncated, "corrupted or truncated", 2),
    "shards that are missing": Case(
        lambda k: k.without(
            "*.safetensors",
            model__safetensors__index__json=json.dumps({"weight_map": {"a": "model-00001.safetensors"}}),
        ),
        "model-00001.safetensors missing, named in model.safetensors.index.json; fetch the base again",
    ),
    "pickled weights": Case(
        lambda k: k.without("*.safetensors", pytorch_model__bin=b"x"), "convert it where you trust it"
    ),
    "no tokenizer": Case(lambda k: k.without("tokenizer*"), "the folder needs tokenizer.json"),
    "a tokenizer that is damaged": Case(
        lambda k: k.without("tokenizer.json", tokenizer__json="{}"), "the folder needs tokenizer.json"
    ),
    "gptq": Case(
        lambda k: k.with_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantised already (gptq); give the 16-bit original",
    ),
    "awq": Case(
        lambda k: k.with_config(quantization_config={"quant_method": "awq"}),
        "is quantised already (awq); give the 16-bit",
    ),
    "a gguf file": Case(lambda k: {"model.base": k.file("m.gguf", b"GGUF")}, "m.gguf: cannot be read: "),
    "a folder with a gguf file": Case(
        lambda k: {"model.base": str(Path(k.file("m/m.Q4_K_M.gguf", b"GGUF")).parent)},
        "holds m.Q4_K_M.gguf, a GGUF file; give the file itself: ",
    ),
    "an adapter": Case(
        lambda k: {"model.base": k.adapter()},
        "is an adapter; give its base in model.base, and the adapter in lora.init_from",
    ),
    "a run folder": Case(lambda k: {"model.base": k.other_run()[1]}, "is a run folder; give its merged model, "),
    "an encoder to write": Case(lambda k: {"model.base": str(k.encoder)}, "'bert' is an encoder; set model.task"),
    "a decoder to label": Case(
        lambda k: k.labelled(**{"model.base": str(k.base)}),
        "'llama' is not an encoder that EdgeTune can export; known are",
    ),
    "an architecture that nobody knows": Case(lambda k: k.with_config(model_type="llamma"), "known are, among"),
    "an architecture that cannot be exported": Case(
        lambda k: k.with_config(architectures=["StableLmForCausalLM"]), "choose a base with one of: Gemma2ForCausalLM"
    ),
    "a model that sees": Case(
        lambda k: k.with_config(model_type="vit", architectures=["ViTModel"]), "'vit' is not a decoder"
    ),
    "fewer weights than layers": Case(
        lambda k: k.with_config(num_hidden_layers=3),
        "config.json asks for 9 weights that are not there, e.g. model.layers.2.self_attn.q_proj.weight; fetch or copy",
    ),
    "weights of another shape": Case(
        Kit.wider, "model.norm.weight is (80,) in its files, config.json asks for (64,); fetch or copy the model again"
    ),
    "a template that fails": Case(
        lambda k: k.template("{{ raise_exception('only poems') }}"),
        "the chat template refuses these messages: only poems",
    ),
    "neither template nor end": Case(
        lambda k: k.template(None, eos_token=None),
        "neither a chat template nor an eos_token; set one in tokenizer_config",
    ),
    "a pooler that is not there": Case(
        lambda k: k.labelled(**{"classify.pooling": "pooler", "model.base": str(_no_pooler(k))}),
        'set it to "mean" or "cls"',
    ),
}
ADAPTERS = {
    "targets that are nowhere": Case(
        {"lora.target_modules": ["c_attn"]},
        "c_attn: no part of the base is called so; the base's linears: down_proj, gate_proj, k_proj, lm_head",
    ),
    "no targets": Case({"lora.target_modules": []}, "an empty list: no part of the base is called so"),
    "the embedding": Case(
        {"lora.target_modules": ["embed_tokens", "q_proj"]},
        "model.embed_tokens is one end of a tie, embedding and head, that would have to differ; leave it out",
    ),
    "the head that is the embedding": Case(
        {"lora.target_modules": ["lm_head", "q_proj"]},
        "lm_head is one end of a tie, embedding and head, that would have to differ; leave it out",
    ),
    "a norm": Case({"lora.target_modules": ["input_layernorm"]}, "is a LlamaRMSNorm, not a linear"),
    "the pooler that is left out": Case(
        lambda k: k.labelled(**{"lora.target_modules": ["pooler.dense"]}), "no part of the base is called so"
    ),
    "rank 0": Case({"lora.r": 0}, "lora.r: 0 must be at least 1"),
    "a negative rank": Case({"lora.r": -8}, "lora.r: -8 must be at least 1"),
    "alpha is no number": Case({"lora.alpha": float("nan")}, "lora.alpha: nan is not a number"),
    "dropout of everything": Case({"lora.dropout": 1.0}, "lora.dropout: 1.0 must be at most 0.95"),
    "an adapter that is not there": Case(
        {"lora.init_from": "nowhere"}, "no adapter_config.json; give an adapter folder in PEFT's format"
    ),
    "a base for an adapter": Case(
        lambda k: {"lora.init_from": str(k.base)}, "is a model, not an adapter; give an adapter folder"
    ),
    "another kind of adapter": Case(
        lambda k: {"lora.init_from": k.adapter({"peft_type": "IA3"})}, "a IA3 adapter; EdgeTune handles LoRA"
    ),
    "an adapter of another base": Case(
        lambda k: {"lora.init_from": k.adapter(module="model.layers.7.self_attn.q_proj")},
        "does not have as a weight of its own; give the base it was trained on",
    ),
    "an adapter on a tied embedding": Case(
        lambda k: {"lora.init_from": k.adapter(module="model.embed_tokens")},
        "train without embed_tokens and lm_head in target_modules and modules_to_save",
    ),
}
KEYS = {
    "a key that is misspelt": Case({"train.learning_rte": 1.0}, "unknown key; did you mean 'learning_rate'?"),
    "a table that is misspelt": Case({"trian.epochs": 1}, "unknown table; did you mean 'train'?"),
    "a rate without end": Case({"train.learning_rate": float("inf")}, "train.learning_rate: inf must be finite"),
    "a negative rate": Case({"train.learning_rate": -1e-4}, "-0.0001 must be greater than 0"),
    "a date": Case({"train.epochs": tomllib.loads("d = 2024-05-01")["d"]}, "is not a number"),
    "a text for a number": Case({"train.batch_size": "four"}, "'four' is not 'auto' or an integer"),
    "negative steps": Case({"train.max_steps": -3}, "-3 must be at least 1"),
    "a block of no size": Case({"export.block_size": 48}, "48 is not 16 or 32 or 64"),
    "a precision that is none": Case({"export.precision": "int3"}, "'int3' is not 'int4' or 'int2'"),
    "rounding for no rows": Case(
        {"export.method": "awq", "export.calibration_rows": 0}, 'raise export.calibration_rows, or take "search"'
    ),
    "layers that are nowhere": Case(
        {"export.int8_layers": ["wte"]}, "no matrix is called 'wte'; e.g. model.layers.0.mlp.down_proj"
    ),
    "a size in apples": Case({"budget.memory": "2 apples"}, 'write it as "2 GiB" or "512 MiB"'),
    "a budget that is too small": Case(
        {"budget.memory": "100 MiB"}, "`edgetune plan RECIPE --fit NEW.toml` writes a recipe that fits", 4
    ),
    "a paged optimizer on a CPU": Case({"train.optimizer": "paged_adamw"}, "use adamw_8bit or adamw", 3),
    "liger on a CPU": Case({"train.use_liger_kernel": True}, "Liger's kernels need a GPU; leave it out", 3),
    "a tracker that is not installed": Case(
        {"train.trackers": ["mlflow"]}, "mlflow is not installed; pip install no_such_package", 3
    ),
}
LABELS = {
    "one label": Case(
        lambda k: k.labelled(**{"data.train": k.jsonl([{"text": f"a{n}", "label": "x"} for n in range(4)])}),
        "one label only, 'x'; a classifier needs two labels; give rows of more labels",
    ),
    "no label column": Case(
        lambda k: k.labelled(**{"data.train": k.jsonl([{"text": "a", "answer": "x"}])}),
        'name yours in [data], e.g. columns = { text = "review", label = "stars" }',
    ),
    "no text": Case(
        lambda k: k.labelled(**{"data.train": k.jsonl([{"text": "", "label": "x"}] * 3)}),
        "no row has a text to train on; a classifier needs two labels",
    ),
    "a label that training lacks": Case(
        lambda k: k.labelled(**{"data.eval": k.jsonl([{"text": "a", "label": "blink"}])}),
        "label 'blink' does not occur in the training rows",
    ),
    "a test label that training lacks": Case(
        lambda k: k.labelled(**{"data.test": k.jsonl([{"text": "a", "label": "blink"}])}),
        "label 'blink' does not occur in the training rows",
    ),
    "a positive label that is none": Case(
        lambda k: k.labelled(**{"evaluate.metric": "f1", "classify.positive_label": "blink"}), "'blink' is no label"
    ),
    "a metric of texts": Case(
        lambda k: k.labelled(**{"evaluate.metric": "json"}), "a classifier has accuracy, macro_f1, f1"
    ),
    "nothing but rows out of scope": Case(
        lambda k: k.labelled(
            **{"data.test": k.jsonl([{"text": "a", "label": "other"}]), "classify.out_of_scope_label": "other"}
        ),
        "every row is out of scope; add rows of the other labels",
    ),
    "all texts too long": Case(
        lambda k: k.labelled(
            **{
                "data.max_seq_len": 8,
                "data.too_long": "drop",
                "data.train": k.jsonl(
                    [{"text": f"{PATIENT} {row['text']}", "label": row["label"]} for row in LABELLED]
                ),
            }
        ),
        'no train row can be used, 7 are too long; raise data.max_seq_len, or set data.too_long = "truncate"',
    ),
    "a base of decoders' keys": Case(
        lambda k: k.labelled(**{"model.embedding_quantization": "int8"}), "leave it out of a classifier"
    ),
}
FOLDERS = {
    "a file in the way": Case(
        {},
        "is a file, and a run needs a folder; choose another folder with --out",
        2,
        lambda k: ["-o", k.file("taken", "")],
    ),
    "below a file": Case(
        {},
        "is a file, and a run needs a folder; choose another folder with --out",
        2,
        lambda k: ["-o", k.file("taken", "") + "/run"],
    ),
    "another run": Case({}, 'model.base is "other" there', 2, Kit.other_run),
    "a folder that is no run's": Case(
        {},
        "is no run folder (no run.json) but has adapter",
        2,
        lambda k: ["-o", str(Path(k.file("mine/adapter/x", "")).parent.parent)],
    ),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in (
        ("rows", ROWS),
        ("scores", SCORES),
        ("base", BASES),
        ("adapter", ADAPTERS),
        ("key", KEYS),
        ("labels", LABELS),
        ("folder", FOLDERS),
    )
    for name, case in cases.items()
}


def _no_pooler(kit: Kit) -> Path:
    folder = kit.copy(of=kit.encoder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.fixture
def kit(tmp_path: Path, tiny_base: Path, tiny_encoder: Path, tiny_rows: Path) -> Kit:
    return Kit(tmp_path, tiny_base, tiny_encoder, tiny_rows)


def write_recipe(kit: Kit, settings: dict[str, Any]) -> Path:
    """A small recipe with these settings."""
    tables: dict[str, dict[str, Any]] = {}
    sound = {"model.base": str(kit.base), "data.train": str(kit.rows), "data.max_seq_len": 128}
    for name, value in {**sound, **settings}.items():
        table, _, key = name.partition(".")
        tables.setdefault(table, {})[key] = value
    text = "".join(
        f"[{table}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        for table, values in tables.items()
    )
    path = kit.folder / "recipe.toml"
    path.write_text(text)
    return path


def _toml(value: Any) -> str:
    return str(value) if hasattr(value, "isoformat") else as_toml(value)


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_would_stumble_over_is_refused_by_the_plan(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(kit.folder)
    monkeypatch.setattr(trackers, "PACKAGES", {"mlflow": ("no_such_package",)})
    case = CASES[name]
    recipe = write_recipe(kit, case.settings(kit) if callable(case.settings) else case.settings)
    options = case.options(kit) if case.options else []
    before = everything_in(kit.folder)
    result = CliRunner().invoke(main, ["plan", str(recipe), *options])
    assert result.exit_code == case.code, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("edgetune: ")
    assert case.told in result.stderr
    assert everything_in(kit.folder) == before


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kit.folder)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(plan_checks.shutil, "disk_usage", lambda _: usage)
    for verb in ("plan", "run"):
        result = CliRunner().invoke(main, [verb, str(write_recipe(kit, {})), "-o", "run"])
        assert result.exit_code == 2
        assert "MiB, 0 MiB are free; free some space or choose another folder with --out" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not os.path.exists("run/adapter")


def test_what_its_owner_may_not_expect_is_told_and_not_refused(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kit.folder)
    settings = {"data.test": str(kit.rows), "lora.target_modules": ["q_proj", "qkv_proj"]}
    result = CliRunner().invoke(main, ["plan", str(write_recipe(kit, settings))])
    assert result.exit_code == 0, result.output
    assert "data.test: the very rows that are trained on" in result.stdout
    assert "no part of the base is called qkv_proj; the base's linears: down_proj" in result.stdout
