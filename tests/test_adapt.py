"""`edgetune adapt`: an adapter goes on with new rows, and a bundle that forgot is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune import adapt_scores
from edgetune.adapt_run import has_replaced, replace_bundle
from edgetune.cli import main
from edgetune.files import read_json
from edgetune.hashes import hash_tree
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle

LABELS = """
[model]
base = "{base}"
task = "classification"
compute_dtype = "float32"
[data]
train = "{rows}"
eval_fraction = 0.3
[train]
max_steps = 12
learning_rate = 5e-3
"""

COLUMNS = ("--set", 'data.columns={ prompt = "question", completion = "reply" }')
SHORT = ("--set", "train.max_steps=12", "--set", "train.learning_rate=5e-3", "--set", "export.min_gain_kept=0")


def edgetune(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def new_rows(path, count=40):
    """Rows that have nothing to do with the old ones."""
    rows = [{"question": f"zebra {n} eats?", "reply": f"grass {n % 3}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(finished_run, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of a finished run with a bundle, runs/tiny, and new rows."""
    shutil.copytree(finished_run, tmp_path / "copy")
    new_rows(tmp_path / "copy" / "new.jsonl")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def adapted(finished_run, tmp_path_factory):
    """A copy of the finished run after an adaptation, whose bundle took the place of the run's; and what that said."""
    path = tmp_path_factory.mktemp("adapted") / "copy"
    shutil.copytree(finished_run, path)
    new_rows(path / "new.jsonl")
    options = (*COLUMNS, *SHORT, "--allowed-drop", 1, "--replace", "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        return path, edgetune("adapt", "runs/tiny", "--data", "new.jsonl", *options)


def test_new_rows_are_learned_and_the_bundle_is_replaced_where_the_old_ones_are_kept(
    finished_run, adapted, monkeypatch
):
    here, done = adapted
    monkeypatch.chdir(here)
    before = hash_tree(finished_run / "runs/tiny/bundle")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["new"]["after"] < found["new"]["before"] - 0.5
    assert found["rows"]["replayed"] == found["rows"]["new_train"] > 20
    assert found == {key: value for key, value in read_json(here / "runs/tiny-adapted/results/adapt.json").items()
                     if key != "provenance"}  # fmt: skip
    bundles = found["bundles"]
    assert bundles["passed"]
    assert bundles["new"]["after"] < bundles["new"]["before"] - 0.5
    for kind in ("old", "new"):
        assert bundles[kind]["before"] == pytest.approx(found[kind]["before"], rel=0.2)
        assert bundles[kind]["after"] == pytest.approx(found[kind]["after"], rel=0.2)
    drifted = {measure["name"] for measure in found["drift"]["measures"] if measure["is_drift"]}
    assert {"vocabulary", "unseen"} <= drifted
    assert {"zebra", "eats", "grass"} & set(found["drift"]["typical_words"])
    assert hash_tree(here / "runs/tiny/bundle") == hash_tree(here / "runs/tiny-adapted/bundle") != before
    assert edgetune("generate", "runs/tiny/bundle", "zebra 4 eats?").exit_code == 0
    shown = edgetune("adapt", "runs/tiny", "--data", "new.jsonl", *COLUMNS, *SHORT, "--allowed-drop", 1)
    assert shown.exit_code == 0
    assert "new rows" in shown.stdout
    assert "old rows, bundle" in shown.stdout
    assert "the loss of the bundle on the old rows went from" in shown.stdout
    assert "up to date" in shown.stderr
    again = read_json(here / "runs/tiny-adapted/results/adapt.json")["bundles"]
    assert again["old"] == bundles["old"]  # against the bundle that was there before this one took its place


def test_a_crash_before_the_bundle_is_replaced_does_not_count_as_replaced(finished_run, adapted, tmp_path, monkeypatch):
    run, out = (RunDir(tmp_path / name) for name in ("run", "out"))
    shutil.copytree(finished_run / "runs/tiny", run.path)
    shutil.copytree(adapted[0] / "runs/tiny-adapted/bundle", out.bundle)
    before = hash_tree(run.bundle)
    with monkeypatch.context() as patch:
        patch.setattr("edgetune.adapt_run.shutil.copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replace_bundle(run, out)
    assert run.read()["bundle_from"]["run"] == str(out.path)
    assert hash_tree(run.bundle) == before
    assert not has_replaced(run, out)
    replace_bundle(run, out)
    assert hash_tree(run.bundle) == hash_tree(out.bundle)
    assert has_replaced(run, out)
    run.update({"bundle_from": str(out.path)})  # as an earlier version wrote it
    assert has_replaced(run, out)


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_bundle_of_an_adapter_that_forgot_is_refused_and_the_old_one_stays(here):
    before = hash_tree(here / "runs/tiny/bundle")
    done = edgetune("adapt", "runs/tiny", "--data", "new.jsonl", *COLUMNS, *SHORT, "--replay", 0, "--replace")
    assert done.exit_code == 5, done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("edgetune: runs/tiny-adapted: the loss on the old rows went from")
    )
    assert "new rows" in done.stdout
    assert hash_tree(here / "runs/tiny/bundle") == before
    assert not (here / "runs/tiny-adapted/bundle").exists()
    assert (here / "runs/tiny-adapted/adapter").is_dir()


def test_a_bundle_that_forgot_more_than_its_adapter_replaces_nothing(adapted, tmp_path, monkeypatch):
    here = tmp_path / "copy"
    shutil.copytree(adapted[0], here)
    monkeypatch.chdir(here)
    before, change = hash_tree(here / "runs/tiny/bundle"), adapt_scores.change

    def worse(out, kind, *names):
        found = change(out, kind, *names)
        is_bundle = names[0].startswith("bundle")
        return {**found, "difference": 9.0, "after": found["before"] + 9.0} if is_bundle else found

    monkeypatch.setattr("edgetune.adapt_run.change", worse)
    options = (*COLUMNS, *SHORT, "--allowed-drop", 1, "--replace")
    done = edgetune("adapt", "runs/tiny", "--data", "new.jsonl", *options)
    assert done.exit_code == 5, done.stderr
    found = read_json(here / "runs/tiny-adapted/results/adapt.json")
    assert (found["passed"], found["bundles"]["passed"]) == (True, False)
    assert (found["bundle"], found["replaced"]) == (None, None)
    assert "runs/tiny-adapted/bundle: the loss of the bundle on the old rows went from" in done.stderr
    assert "runs/tiny/bundle stays as it was" in done.stderr
    assert "old rows, bundle" in done.stdout
    assert hash_tree(here / "runs/tiny/bundle") == before
    assert not open_bundle(here / "runs/tiny-adapted/bundle").verified["passed"]


@pytest.mark.slow
def test_the_adapter_begins_where_the_runs_is_and_replay_is_what_keeps_it(here):
    losses = {}
    for replay in ("0", "0.7"):
        out = f"out-{replay}"
        options = ("--replay", replay, "--allowed-drop", 1, "--out", out, "--json")
        shutil.rmtree("runs/tiny/bundle", ignore_errors=True)
        done = edgetune("adapt", "runs/tiny", "--data", "new.jsonl", *COLUMNS, *SHORT, *options)
        assert done.exit_code in (0, 5), done.stderr
        found = read_json(Path(out) / "results/adapt.json")
        losses[replay] = found["old"]["after"]
        assert found["old"]["before"] == pytest.approx(
            read_json(here / "runs/tiny/results/train.json")["eval_loss"], rel=1e-3
        )
        assert found["bundle"] is None
        recipe = load_recipe(Path(out) / "recipe.toml")
        assert recipe.lora.init_from == "runs/tiny/adapter"
    assert losses["0.7"] < losses["0"] - 0.1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("runs/none", "--data", "new.jsonl"), "runs/none: has no trained adapter to go on from; give a run folder"),
        (("runs/tiny", "--data", "missing.jsonl"), "missing.jsonl: no such file or folder"),
        (("runs/tiny", "--data", "new.jsonl"), "new.jsonl:1: no format has the columns question, reply"),
        (("runs/tiny", "--data", "empty.jsonl"), "empty.jsonl"),
        (("runs/tiny", "--data", "broken.jsonl"), "broken.jsonl:1"),
        (("runs/tiny", "--data", "new.jsonl", "--out", "runs/tiny"), "runs/tiny: is the run itself"),
        (("runs/tiny", "--data", "new.jsonl", "--set", "data.train=x"), "--set data.train: an adaptation keeps"),
        (("runs/tiny", "--data", "new.jsonl", "--set", "data.eval=x"), "give new rows to score on with --eval"),
        (("runs/tiny", "--data", "new.jsonl", "--set", "model.base=x"), "--set model.base: an adaptation keeps"),
        (("runs/tiny", "--data", "new.jsonl", "--set", "train.lr=1"), "train.lr"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, arguments, told):
    (here / "empty.jsonl").write_text("")
    (here / "broken.jsonl").write_text("{\n")
    done = edgetune("adapt", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (here / "runs/tiny-adapted").exists()


@pytest.mark.parametrize("replay", ["1", "-0.1", "x"])
def test_a_share_that_is_none_is_a_usage_error(replay):
    assert edgetune("adapt", "runs/tiny", "--data", "new.jsonl", "--replay", replay).exit_code == 2


def test_a_classifiers_head_goes_on_though_new_rows_have_one_label_only(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("on", "off", "up")
    rows = [{"text": f"turn {word} lamp {n}", "label": word} for n in range(12) for word in words]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = [{"text": f"please raise the blind {n}", "label": "up"} for n in range(20)]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    Path("labels.toml").write_text(LABELS.format(base=tiny_encoder, rows="rows.jsonl"))
    assert edgetune("train", "labels.toml").exit_code == 0
    options = ("--replay", 0, "--allowed-drop", 1, "--set", "train.max_steps=1", "--set", "train.learning_rate=1e-9")
    done = edgetune("adapt", "runs/labels", "--data", "new.jsonl", *options, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert read_json(Path("runs/labels-adapted/adapter/classifier.json"))["labels"] == ["off", "on", "up"]
    assert found["old"]["after"] == found["old"]["before"] > 0.5
    assert found["drift"]["labels"]["up"][1] == 1.0
    greetings = [{"text": f"hello {n}", "label": "greeting"} for n in range(9)]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in greetings))
    done = edgetune("adapt", "runs/labels", "--data", "other.jsonl", "--out", "x")
    assert done.exit_code == 2
    assert "label 'greeting' is none that the classifier was trained with" in done.stderr
