"""Recipes: reading, overriding, checking, writing back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgetune.errors import RecipeError
from edgetune.recipe import TABLES, load_recipe, parse_recipe, parse_size

SMALL = '[model]\nbase = "edgetune:nano"\n\n[data]\ntrain = "edgetune:home"\n'
RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def parse(text: str, *overrides: str):
    return parse_recipe(text, source="a.toml", overrides=overrides)


def test_a_small_recipe_gets_the_documented_defaults():
    recipe = parse(SMALL)
    assert (recipe.lora.r, recipe.lora.alpha, recipe.train.learning_rate) == (16, 32.0, "auto")


def test_a_recipe_written_back_reads_as_the_same_recipe():
    recipe = parse(
        SMALL + 'columns = { prompt = "a \\"b\\"" }\n[lora]\ntarget_modules = ["q_proj", "v_proj"]\n'
        "[train]\nlearning_rate = 1e-5\nmax_steps = 3\n"
    )
    assert parse_recipe(recipe.to_toml(), source="b.toml") == recipe


def test_an_unknown_key_is_named_with_its_line_and_the_closest_key():
    with pytest.raises(RecipeError) as error:
        parse(SMALL + "[lora]\ndropuot = 0.1\n")
    assert str(error.value) == "a.toml:7: lora.dropuot: unknown key; did you mean 'dropout'?"


def test_all_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as error:
        parse('[model]\nquantization = "int3"\n[data]\ntrain = 3\n[lorra]\nr = 1\n', "train.epochs=0")
    assert len(error.value.problems) == 5
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("lora.r=0", "must be at least 1"),
        ("lora.r=1.5", "1.5 is not an integer"),
        ("lora.r=true", "True is not an integer"),
        ("train.learning_rate=-1", "must be greater than 0"),
        ("train.learning_rate=nan", "is not"),
        ("train.schedule=step", "'step' is not 'constant' or 'linear' or 'cosine'"),
        ("export.block_size=48", "48 is not 16 or 32"),
        ("lora.target_modules=[1]", "is not 'all-linear' or a list of a text"),
        ("train", "must be table.key=value"),
        ("data.train=''", "data.train: is empty"),
        ("budget.memory=2 apples", "is not a size"),
        ("budget.memory=" + "9" * 400 + " GiB", r"'9{59}\.\.\. is not a size"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_wanted(override, complaint):
    with pytest.raises(RecipeError, match=complaint.replace("(", r"\(")):
        parse(SMALL, override)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("export.method=gptq", "export.calibration_rows=0"), 'export.method = "gptq": has no rows; raise'),
        (("export.method=awq", "export.calibration_rows=0"), 'export.method = "awq": has no rows; raise'),
        (("export.method=awq", "model.task=classification"), '"awq": is for decoders; a classifier takes "gptq"'),
        (("export.method=hqq", "export.on_grid_steps=9"), "on_grid_steps round in a way of their own"),
        (("export.precision=int2", "export.block_size=16"), "block_size 32, 64, 128 and accuracy_level 4 only"),
        (("export.precision=int2", "export.accuracy_level=0"), "block_size 32, 64, 128 and accuracy_level 4 only"),
        (("export.precision=int2", "export.on_grid_steps=9"), 'on_grid_steps are for "int4"'),
        (("export.precision=int2", "model.task=classification"), '"int2": is for decoders'),
    ],
)
def test_ways_of_rounding_that_cannot_be_are_one_line(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint) as error:
        parse(SMALL, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("train.plateau_patience=2",), 'plateau_patience: has no effect on schedule = "cosine"; take "plateau"'),
        (("train.plateau_factor=0.1", "train.schedule=linear"), 'no effect on schedule = "linear"'),
        (("train.schedule=plateau", "train.early_stopping_patience=1"), "ends training before plateau_patience = 1"),
        (("train.schedule=plateau", "train.plateau_factor=1"), "must be at most 0.95"),
    ],
)
def test_a_plateau_that_cannot_be_is_one_line(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint) as error:
        parse(SMALL, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "method", "needs_rows"),
    [
        ((), "gptq", True),
        (("export.precision=int2",), "gptq", True),
        (("export.precision=int8",), "search", False),
        (("export.precision=int8", "export.method=gptq"), "gptq", True),
        (("export.calibration_rows=0",), "search", True),
        (("export.method=hqq",), "hqq", True),
        (("export.precision=fp16", "export.method=gptq"), "gptq", False),
    ],
)
def test_rounding_for_the_rows_is_the_default_where_it_pays(overrides, method, needs_rows):
    recipe = parse(SMALL, *overrides)
    assert (recipe.export.rounding, recipe.export.needs_rows) == (method, needs_rows)
    assert parse_recipe(recipe.to_toml(), source="b.toml").export == recipe.export


def test_overrides_win_and_need_no_quotes_for_text():
    recipe = parse(SMALL, "train.learning_rate=1e-4", "train.schedule=linear", "data.eval=/tmp/x.jsonl")
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.data.eval) == (1e-4, "linear", "/tmp/x.jsonl")


def test_a_duplicate_key_is_an_error():
    with pytest.raises(RecipeError, match="not valid TOML"):
        parse(SMALL + 'train = "b"\n')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "size"), [("2 GiB", 2 * 1024**3), ("512MiB", 512 * 1024**2), ("1.5G", 3 * 512 * 1024**2)]
)
def test_sizes_are_read_in_binary_units(text, size):
    assert parse_size(text) == size


HUB_SHAPES = {
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
    "Qwen/Qwen3-14B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "google/gemma-3-1b-it": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""config.json of the bases that recipes name by hub id: an estimate needs no more, and tests have no network."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_folder_is_estimated_to_fit_its_budget(path, tmp_path):
    from edgetune.model.memory import FRAGMENTATION, estimate

    recipe = load_recipe(path)
    if recipe.model.base in HUB_SHAPES:
        (tmp_path / "config.json").write_text(json.dumps(HUB_SHAPES[recipe.model.base]))
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, base=str(tmp_path)))
    if recipe.budget.gpu_memory:
        allowed = parse_size(recipe.budget.gpu_memory)
        assert 0.5 * allowed < estimate(recipe, on="cuda").peak_bytes <= (1 - FRAGMENTATION) * allowed
    else:
        assert estimate(recipe).peak_bytes <= parse_size(recipe.budget.memory)


def test_there_is_a_recipe_for_each_common_card():
    cards = {parse_size(load_recipe(path).budget.gpu_memory) for path in RECIPES}
    assert {gib * 1024**3 for gib in (4, 6, 8, 12, 24)} <= cards


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_folder_reads_and_states_a_budget(path):
    recipe = load_recipe(path)
    assert recipe.budget.memory or recipe.budget.gpu_memory
    assert len(path.read_text().splitlines()) <= 40


CLASSIFIER = '[model]\nbase = "b"\ntask = "classification"\n[data]\ntrain = "t"\n'


def test_a_classifier_has_defaults_of_its_own_that_the_recipe_overrides():
    recipe = parse_recipe(CLASSIFIER + "[train]\nepochs = 3\n", source="r.toml")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.data.too_long) == (3, 32, "truncate")
    assert recipe.evaluate.metric == "accuracy"
    assert parse_recipe(recipe.to_toml(), source="again.toml") == recipe


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[model]\nbase = "b"\n[data]\ntrain = "t"\n[classify]\nscale = 9.0\n', r"\[classify\]: needs model.task"),
        ('[model]\nbase = "b"\n[data]\ntrain = "t"\n[evaluate]\nmetric = "macro_f1"\n', "needs model.task"),
        (CLASSIFIER + '[evaluate]\nmetric = "json"\n', "a classifier has accuracy, macro_f1, f1"),
        (CLASSIFIER + '[evaluate]\nmetric = "f1"\n', "name the label in classify.positive_label"),
        (CLASSIFIER + '[classify]\nmulti_label = true\nout_of_scope_label = "x"\n', "no label fits has none"),
    ],
)
def test_tables_that_contradict_each_other_are_a_problem(text, problem):
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(text, source="r.toml")


@pytest.mark.parametrize("setting", ["export.on_grid_steps=10", 'export.int8_layers=["o_proj"]'])
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_what_only_few_bits_need_is_refused_of_others(setting, precision):
    text = '[model]\nbase = "b"\n[data]\ntrain = "t"\n'
    with pytest.raises(RecipeError, match=f'has no effect on precision = "{precision}"; leave it out'):
        parse_recipe(text, source="r.toml", overrides=[setting, f"export.precision={precision}"])


def test_a_budget_of_nothing_is_a_problem():
    with pytest.raises(RecipeError, match=r"budget\.device_memory: '0 MiB' leaves no room"):
        parse_recipe('[model]\nbase = "b"\n[data]\ntrain = "t"\n[budget]\ndevice_memory = "0 MiB"\n', source="r.toml")


def test_every_key_is_documented_in_the_readme():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    missing = [
        f"{table}.{item.name}"
        for table, kind in TABLES.items()
        for item in dataclasses.fields(kind)
        if f"`{item.name}`" not in readme
    ]
    assert not missing


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("export.repair_steps=200", "export.repair_steps"),
        ("export.on_grid_steps=10", "export.on_grid_steps"),
        ('export.int8_layers=["query"]', "export.int8_layers"),
        ("export.head_bits=4", "export.head_bits"),
        ("export.max_length=64", "export.max_length"),
        ("train.fused_loss=false", "train.fused_loss"),
        ("evaluate.max_new_tokens=8", "evaluate.max_new_tokens"),
    ],
)
@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_a_key_that_does_nothing_for_a_classifier_is_named_and_not_refused(setting, key, precision) -> None:
    asked = [setting, f"export.precision={precision}"]
    assert parse_recipe(CLASSIFIER, source="r.toml", overrides=asked).idle_keys == (key,)
    if precision == "int4":
        assert parse(SMALL, setting).idle_keys == ()


def test_a_classifier_s_own_defaults_are_no_idle_keys() -> None:
    recipe = parse_recipe(CLASSIFIER, source="r.toml")
    assert recipe.idle_keys == ()
    assert parse_recipe(recipe.to_toml(), source="again.toml").idle_keys == ()


def test_every_key_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for table, kind in TABLES.items():
        line = next(line for line in readme.splitlines() if line.startswith(f"| `[{table}]`"))
        assert [item.name for item in dataclasses.fields(kind) if f"`{item.name}`" not in line] == []


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.weight_decay=1" + "0" * 400, "weight_decay"),
        ("train.seed=-1" + "0" * 400, "seed"),
        ("train.batch_size=0x" + "f" * 9000, "batch_size"),
        ("data.max_train_rows=1" + "0" * 30, "max_train_rows"),
        ("lora.r=" + "9" * 5000, "lora.r"),
        ("data.columns=" + "[" * 5000, "columns"),
    ],
)
def test_numbers_and_brackets_without_end_are_a_problem_of_the_recipe(setting: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        parse_recipe('[model]\nbase = "x"\n[data]\ntrain = "y"\n', source="r.toml", overrides=[setting])
    assert len(str(caught.value)) < 200
