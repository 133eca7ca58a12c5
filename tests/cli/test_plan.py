from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgetune.cli import main
from edgetune.model.memory import FRAGMENTATION


@pytest.fixture
def recipe(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(f'[model]\nbase = "{tiny_base}"\n\n[data]\ntrain = "{tiny_rows}"\nmax_seq_len = 128\n')
    return path


def plan(recipe: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(recipe), *options])


def test_a_sound_recipe_gives_a_table_in_mib_with_a_total(recipe: Path) -> None:
    result = plan(recipe)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "data.train: first 62 rows read" in result.stdout
    assert "MiB" in result.stdout
    assert "total" in result.stdout


def test_json_is_one_document_with_bytes(recipe: Path) -> None:
    document = json.loads(plan(recipe, "--json", "--set", "budget.memory='64 GiB'").stdout)
    assert sum(document["parts_bytes"].values()) == document["peak_bytes"]
    assert document["budget_bytes"] == 64 * 1024**3
    assert document["fits"] is True
    counts = document["first_rows"]["train"]
    assert 0 < counts["trained_tokens"] < counts["tokens"]


def test_each_stage_is_shown_with_its_peak_and_time(recipe: Path) -> None:
    result = plan(recipe, "--set", "export.repair_steps=0")
    document = json.loads(plan(recipe, "--json", "--set", "export.repair_steps=0").stdout)
    names = [stage["name"] for stage in document["stages"]]
    assert names == ["train", "evaluations", "merge", "calibration", "graph", "verification"]
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.startswith("  ")}
    for stage in document["stages"]:
        assert stage["peak_bytes"] == sum(stage["parts_bytes"].values())
        assert stage["seconds"] > 0
        assert lines[stage["name"]][0] == f"{stage['peak_bytes'] / 1024**2:,.1f}"
    largest = max(document["stages"], key=lambda stage: stage["peak_bytes"])
    assert (document["largest_stage"], document["peak_bytes"]) == (largest["name"], largest["peak_bytes"])
    assert f"{largest['name']} is the largest: " in result.stdout


def test_a_budget_that_is_too_small_exits_4_and_says_what_to_do(recipe: Path) -> None:
    result = plan(recipe, "--set", "budget.memory='100 MiB'")
    assert result.exit_code == 4
    assert "budget.memory is 100 MiB; `edgetune plan RECIPE --fit NEW.toml`" in result.stderr
    assert "total" in result.stdout


def test_all_problems_with_the_files_are_told_at_once(recipe: Path) -> None:
    result = plan(recipe, "--set", "model.base='./no-model'", "--set", "data.train='no-rows.jsonl'")
    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert "./no-model" in result.stderr
    assert "no-rows.jsonl" in result.stderr
    assert result.stdout == ""


def test_bad_rows_an_adapter_of_nowhere_and_broken_weights_are_found_without_loading(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-10])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt":\n')
    result = plan(
        recipe,
        *("--set", f"model.base='{base}'"),
        *("--set", f"data.eval='{bad}'"),
        *("--set", "lora.init_from='no-adapter'"),
    )
    assert result.exit_code == 2
    assert "corrupted or truncated" in result.stderr
    assert "bad.jsonl:2" in result.stderr
    assert "no-adapter" in result.stderr


TURN = {"role": "user", "content": "on"}, {"role": "assistant", "content": "ok"}


@pytest.mark.parametrize(
    ("rows", "settings", "complaint"),
    [
        ([{"text": "once upon a time"}], [], 'which exact_match needs; set evaluate.metric = "loss"'),
        ([{"messages": [TURN[1]]}], [], "holds no question with an answer"),
        (
            [{"messages": [TURN[0], {"role": "assistant", "content": None}]}],
            [],
            "data.test: no row has anything to learn",
        ),
        ([{"messages": [*TURN]}], ["evaluate.metric=json"], "the reference is not JSON"),
        (
            [{"messages": [*TURN]}, {"messages": [*TURN], "tools": [{"name": "f"}]}],
            [],
            "tools: the chat template makes",
        ),
    ],
)
def test_rows_that_no_score_can_be_taken_of_are_found_before_the_training(
    recipe: Path, tmp_path: Path, rows: list, settings: list[str], complaint: str
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [word for item in [f'data.test="{path}"', *settings] for word in ("--set", item)]
    result = plan(recipe, *asked)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


OPEN = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def _with_template(tiny_base: Path, folder: Path, template: str, eos: str | None = "<|end|>") -> Path:
    base = Path(shutil.copytree(tiny_base, folder))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"chat_template": template, "eos_token": eos}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    return base


def test_a_template_that_ends_no_answer_is_told_and_without_an_end_token_refused(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    told = plan(recipe, "--set", f"model.base='{_with_template(tiny_base, tmp_path / 'open', OPEN)}'")
    assert told.exit_code == 0, told.stderr
    assert "writes nothing that ends an answer; <|end|> is learned after each row's last one" in told.stdout
    base = _with_template(tiny_base, tmp_path / "endless", OPEN, None)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (base / "generation_config.json").unlink(missing_ok=True)
    refused = plan(recipe, "--set", f"model.base='{base}'")
    assert refused.exit_code == 2
    assert "nothing ends an answer" in refused.stderr
    assert "set eos_token in tokenizer_config.json" in refused.stderr


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m.content | nofilter }}<|end|>{% endfor %}", "No filter named 'nofilter'"),
        ("{% for m in messages %}{% set _ = [].append(1) %}{{ m.content }}<|end|>{% endfor %}", "append"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused_by_name(
    recipe: Path, tiny_base: Path, tmp_path: Path, template: str, complaint: str
) -> None:
    result = plan(recipe, "--set", f"model.base='{_with_template(tiny_base, tmp_path / 'base', template)}'")
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "the chat template" in result.stderr


def test_an_unknown_key_is_found_before_any_file(recipe: Path) -> None:
    result = plan(recipe, "--set", "lora.rnak=4")
    assert result.exit_code == 2
    assert "lora.rnak" in result.stderr


def test_a_token_beyond_the_embedding_is_found_in_any_row_before_the_training(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    from edgetune.model.base import load_tokenizer

    base = Path(shutil.copytree(tiny_base, tmp_path / "too-few"))
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(4)])
    tokenizer.save_pretrained(base)
    asked = ("--set", f"model.base='{base}'", "--set", "data.eval_fraction=0.5")
    assert plan(recipe, *asked).exit_code == 0
    rows = [{"prompt": f"turn on lamp {number}", "completion": "ok"} for number in range(600)]
    rows[555]["completion"] = "<extra2>"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = plan(recipe, *asked, "--set", f"data.train='{path}'", "--set", f"data.eval='{path}'")
    assert result.exit_code == 2
    assert "rows.jsonl:556: the token '<extra2>' has the number 514, and the base has vectors for 512" in result.stderr
    assert "resize the base's embedding" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_token_that_an_encoder_has_no_vector_for_is_found_in_any_row(tiny_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.add_tokens(["<extra>"])
    base = Path(shutil.copytree(tiny_encoder, tmp_path / "base"))
    tokenizer.save_pretrained(base)
    rows = [{"text": f"lamp {number}", "label": "ab"[number % 2]} for number in range(300)]
    rows[290]["text"] = "lamp <extra>"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "a.toml"
    recipe.write_text(
        f'[model]\nbase = "{base}"\ntask = "classification"\n[data]\ntrain = "{tmp_path / "rows.jsonl"}"\n'
        f'eval = "{tmp_path / "rows.jsonl"}"\n'
    )
    result = CliRunner().invoke(main, ["plan", str(recipe)])
    assert result.exit_code == 2, result.output
    assert "rows.jsonl:291: the token '<extra>' has the number" in result.stderr


def test_a_base_whose_answers_would_never_end_is_named_before_the_training(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "endless"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text())
        kept = {key: value for key, value in values.items() if key not in ("eos_token", "eos_token_id")}
        if "chat_template" in kept:
            kept["tokenizer_class"] = "PreTrainedTokenizerFast"
            kept["chat_template"] = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
        (base / name).write_text(json.dumps(kept))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    result = plan(recipe, "--set", f"model.base='{base}'")
    assert result.exit_code == 2
    assert "set eos_token in tokenizer_config.json" in result.stderr


def test_a_rotation_that_no_graph_can_hold_is_named_before_the_training(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "spiral"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}})
    )
    result = plan(recipe, "--set", f"model.base='{base}'")
    assert result.exit_code == 2
    assert "the rotary scaling 'spiral' cannot be exported; choose a base with one of" in result.stderr


def test_a_base_that_could_not_be_exported_is_named_before_the_training(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "gpt"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["StableLmForCausalLM"]}))
    for verb in (["plan"], ["run", "-o", str(tmp_path / "run")]):
        result = CliRunner().invoke(main, [verb[0], str(recipe), "--set", f"model.base='{base}'", *verb[1:]])
        assert result.exit_code == 2
        assert "StableLmForCausalLM cannot be exported" in result.stderr
        assert "LlamaForCausalLM" in result.stderr
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.fixture
def label_recipe(tiny_encoder: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A function that makes a classifier's recipe of train and eval rows in CSV."""

    def make(train: str, held_out: str) -> Path:
        lines = [f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\n[data]']
        for name, rows in (("train", train), ("eval", held_out)):
            file = tmp_path / f"{name}.csv"
            file.write_text(f"text,label\n{rows}", encoding="utf-8")
            lines.append(f"{name} = {json.dumps(str(file))}")
        path = tmp_path / "labels.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return make


def test_a_classifier_s_plan_counts_labels(label_recipe: Callable[[str, str], Path]) -> None:
    rows = "yes please,yes\nno thanks,no\nyes,yes\n"
    result = plan(label_recipe(rows, rows))
    assert result.exit_code == 0, result.output
    assert "data.train: first 3 rows read" in result.stdout
    assert "2 labels; 0 rows longer" in result.stdout


def test_keys_that_do_nothing_for_a_classifier_are_told_once(label_recipe: Callable[[str, str], Path]) -> None:
    rows = "yes please,yes\nno thanks,no\nyes,yes\n"
    path = label_recipe(rows, rows)
    shared = ("--set", "export.repair_steps=2", "--set", "export.head_bits=4", "--set", 'export.int8_layers=["x"]')
    result = plan(path, *shared, "--json")
    assert result.exit_code == 0, result.output
    told = "export.head_bits, export.int8_layers: no effect on a classifier"
    assert result.stderr == f"{path}: {told}\n"
    plain = json.loads(plan(path, "--json").stdout)
    assert json.loads(result.stdout)["on_device"]["bundle_bytes"] == plain["on_device"]["bundle_bytes"]


def test_labels_that_training_would_refuse_are_found_by_the_plan(label_recipe: Callable[[str, str], Path]) -> None:
    path = label_recipe("yes please,yes\nno thanks,no\n", "perhaps,maybe\n")
    result = plan(path)
    assert result.exit_code == 2
    assert "label 'maybe' does not occur in the training rows" in result.stderr
    misspelt = plan(path, "--set", "classify.positive_label=ja")
    assert "'ja' is no label" in misspelt.stderr


def test_a_gpu_that_is_not_here_is_planned_for(recipe: Path) -> None:
    document = json.loads(plan(recipe, "--gpu-memory", "8GiB", "--json").stdout)
    assert (document["device"], document["budget_bytes"]) == ("cuda", 8 * 1024**3)
    assert "CUDA context" in document["parts_bytes"]
    assert document["changes"] is None
    result = plan(recipe, "--gpu-memory", "500MiB")
    assert result.exit_code == 4
    assert "budget.gpu_memory is 500MiB" in result.stderr
    assert plan(recipe, "--gpu-memory", "huge").exit_code == 2


def test_a_base_that_fits_as_it_is_is_not_worth_4_bits(recipe: Path) -> None:
    assert 'model.quantization = "none" trains faster' in plan(recipe, "--gpu-memory", "8GiB").stdout
    assert "trains faster" not in plan(recipe).stdout


def test_fit_writes_a_recipe_that_fits_with_as_many_sequences_a_step(recipe: Path, tmp_path: Path) -> None:
    wide = ("--set", "train.batch_size=32", "--set", "train.gradient_accumulation_steps=2")
    half = ("--set", "train.batch_size=16")
    enough = json.loads(plan(recipe, "--gpu-memory", "8GiB", "--json", *half).stdout)["peak_bytes"]
    budget = f"{int(enough / (1 - FRAGMENTATION)) // 1024 + 1}KiB"  # of which --fit leaves that share free
    new = tmp_path / "new.toml"
    result = plan(recipe, "--gpu-memory", budget, "--fit", str(new), *wide)
    assert result.exit_code == 0, result.stderr
    assert "train.batch_size = 16, train.gradient_accumulation_steps = 4" in result.stdout
    assert "gradient_checkpointing" not in result.stdout
    assert plan(new).exit_code == 0
    assert json.loads(plan(new, "--json").stdout)["fits"]
    again = plan(recipe, "--gpu-memory", budget, "--fit", str(new), *wide)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert plan(recipe, "--gpu-memory", budget, "--fit", str(new), "--force", *wide).exit_code == 0


def test_fit_without_a_budget_or_with_one_that_nothing_fits_is_one_line(recipe: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    without = plan(recipe, "--fit", str(new))
    assert without.exit_code == 2
    assert "no budget to fit; give --gpu-memory" in without.stderr
    nothing = plan(recipe, "--gpu-memory", "512MiB", "--fit", str(new))
    assert nothing.exit_code == 4
    assert "even with the smallest settings" in nothing.stderr
    assert not new.exists()


def test_auto_is_decided_and_shown(recipe: Path) -> None:
    auto = ("--set", "train.batch_size=auto", "--set", "train.gradient_checkpointing=auto")
    document = json.loads(plan(recipe, "--gpu-memory", "8GiB", "--json", *auto).stdout)
    assert document["settled"] == {
        "train.batch_size": 16,
        "train.gradient_accumulation_steps": 1,
        "train.gradient_checkpointing": False,
    }
    assert "auto: train.batch_size = 16" in plan(recipe, "--gpu-memory", "8GiB", *auto).stdout
    assert json.loads(plan(recipe, "--gpu-memory", "8GiB", "--json").stdout)["settled"] == {}


def test_the_time_is_told_for_this_machine_only(recipe: Path) -> None:
    found = json.loads(plan(recipe, "--json").stdout)["duration"]
    assert found["is_all"]
    assert found["seconds"] == pytest.approx(found["tokens"] / found["tokens_per_s"])
    shorter = json.loads(plan(recipe, "--json", "--set", "train.max_steps=1").stdout)["duration"]
    assert shorter["steps"] == 1
    assert shorter["tokens"] <= found["tokens"]
    assert "of training on this machine" in plan(recipe).stdout
    elsewhere = plan(recipe, "--gpu-memory", "8GiB")
    assert "time: not estimated, the GPU is not here" in elsewhere.stdout


def test_the_bundle_on_the_device_is_told_for_a_bandwidth(recipe: Path) -> None:
    slow, fast = (
        json.loads(plan(recipe, "--json", "--device-bandwidth", rate).stdout)["on_device"]["tokens_per_s"]
        for rate in ("1GB/s", "4 GB/s")
    )
    assert slow < fast < 4 * slow
    assert "where memory is read at 8GB/s" in plan(recipe, "--device-bandwidth", "8GB/s").stdout
    wrong = plan(recipe, "--device-bandwidth", "fast")
    assert wrong.exit_code == 2
    assert 'write it as "8GB/s"' in wrong.stderr
