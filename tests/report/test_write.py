"""Reports in every form: edgetune/report/write.py, page.py, formats.py, picture.py and `edgetune report`."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_run import bench_report, make_label_run, make_run
from patience import LONG_S

import edgetune
from edgetune.cli import main
from edgetune.errors import RunError
from edgetune.report.facts import Model, Number
from edgetune.report.formats import as_markdown
from edgetune.report.page import in_a_row, render, tiles
from edgetune.report.picture import front
from edgetune.report.read import read_report
from edgetune.report.write import FORMATS, report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def invoke(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


class Page(html.parser.HTMLParser):
    """Tags, their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "good"), make_run(folder / "bad", score=0.4), make_label_run(folder / "labels")]


@pytest.fixture(scope="module")
def page(runs):
    return Page(render(read_report(runs)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_by_the_name_of_the_file(runs, tmp_path, name):
    written = report(runs, tmp_path / f"a.{name}")
    assert written.size_bytes == (tmp_path / f"a.{name}").stat().st_size > 300
    assert written.models == 15


def test_the_page_loads_nothing_from_anywhere(page):
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link.startswith("#") for link in links)
    policy = next(item["content"] for item in page.all("meta") if "http-equiv" in item)
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy


def test_every_anchor_leads_somewhere_and_no_id_is_there_twice(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    assert {item["for"] for item in page.all("label")} <= set(ids)


def test_a_screen_reader_finds_captions_heads_and_names(page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all("scope" in head for head in page.all("th"))
    assert all(item.get("aria-label") for _, item in page.tags if item.get("role") in ("img", "region"))
    assert all(item.get("tabindex") == "0" for _, item in page.tags if item.get("role") == "region")


@pytest.mark.parametrize(
    ("makers", "told"),
    [
        ((make_run,), "nats per trained token"),
        ((make_label_run,), "nats per text"),
        ((make_run, make_label_run), "nats per trained token, of classifiers per text"),
    ],
)
def test_a_page_says_what_its_losses_are_means_over(tmp_path, makers, told):
    folders = [make(tmp_path / str(number)) for number, make in enumerate(makers)]
    assert f"<span>Evaluation loss, {told}</span>" in render(read_report(folders))


@pytest.mark.parametrize(
    ("values", "told"),
    [({}, ["KL to the fine-tune", "0.0050", "answers changed", "2.5%"]), (None, [])],
)
def test_the_tiles_say_how_close_the_bundle_is_where_that_was_measured(tmp_path, values, told):
    run = make_run(tmp_path / "run")
    if values is None:
        for name, key in (("survival", "closeness"), ("bundle", "distance")):
            path = run / "results" / f"{name}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), key: None}))
    named = [tile for tile in tiles(read_report([run])) if tile.name in ("KL to the fine-tune", "answers changed")]
    assert [text for tile in named for text in (tile.name, tile.value)] == told


@pytest.mark.parametrize(("tiles", "row"), [(0, 1), (1, 1), (6, 6), (7, 4), (8, 4), (12, 6), (13, 5)])
def test_no_tile_is_left_over_alone(tiles, row):
    assert in_a_row(tiles) == row


def test_the_cost_of_trainings_is_shown_of_runs_and_of_a_bench(runs, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(bench_report()))
    found = read_report([*runs[:1], tmp_path / "bench.json"])
    text = Page(render(found)).text
    for told in ("What it cost", "wall time", "2.2 min", "700 MiB", "results/train.json: not there (quick): wall time"):
        assert told in text
    table = as_markdown(found).partition("## Training")[2].strip().splitlines()
    assert table[0] == "| run | from | peak memory | tokens/s | tokens/s of a step | wall time | steps | tokens |"
    assert table[2] == "| good | good | 900 MiB | 1,500 | - | 2.2 min | 100 | 180,000 |"
    assert table[3] == "| quick | bench.json | 700 MiB | 1,200 | 1,210 (1,100 to 1,300) | - | - | - |"


def test_what_was_not_measured_is_said_and_no_zero(page):
    assert "not measured" in page.text


def test_verdicts_are_words_not_colours_alone(page):
    assert "✓ verified" in page.text
    assert "✗ lost too much" in page.text


def test_what_users_wrote_is_shown_and_never_run(tmp_path):
    run = make_run(tmp_path / "run")
    for path in (run / "results").glob("*-answers.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        text = "".join(json.dumps({**row, "prompt": EVIL, "reference": EVIL, "answer": EVIL}) + "\n" for row in rows)
        path.write_text(text)
    ledger = json.loads((run / "results" / "ledger.json").read_text())
    ledger["stages"][0]["name"] = EVIL
    (run / "results" / "ledger.json").write_text(json.dumps(ledger))
    text = render(read_report([run], title=EVIL))
    found = Page(text)
    assert EVIL in found.text
    assert found.all("img") == []
    assert len(found.all("script")) == 2
    charts = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert json.loads(charts[1])["ledger-1"]["data"]["values"][0]["step"] == EVIL


def test_the_scripts_cannot_end_themselves():
    folder = Path(edgetune.__file__).parent / "report" / "page"
    for name in ("vega.js", "page.js", "page.css"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"</(script|style)|<!--", text, re.IGNORECASE)


def test_twenty_runs_weigh_less_than_six_mib(tmp_path):
    runs = [make_run(tmp_path / f"run-{number}", seed=number, rows=500) for number in range(18)]
    runs.append(make_label_run(tmp_path / "many", tuple(f"intent {number}" for number in range(150))))
    runs.append(make_label_run(tmp_path / "few"))
    assert len(render(read_report(runs)).encode()) < 6 * 1024**2


def test_other_rows_are_not_compared_without_a_word(runs):
    assert "scores of different rows cannot be compared" in Page(render(read_report(runs))).text
    assert "cannot be compared" not in Page(render(read_report(runs[:2]))).text


def test_a_report_without_any_score_is_still_a_page(tmp_path):
    run = make_run(tmp_path / "run")
    for path in (run / "results").iterdir():
        path.unlink()
    found = Page(render(read_report([run])))
    assert "Left out" in found.text
    assert "Loss" in found.text


def test_csv_leaves_empty_what_is_not_known(runs, tmp_path):
    report(runs, tmp_path / "a.csv")
    lines = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    rows = [line for line in lines if line["stage"] != "training"]
    assert [(line["model"], line["wall_s"], line["loss"]) for line in lines[15:]] == [
        (name, "130.0", "") for name in ("good", "bad", "labels")
    ]
    assert len(rows) == 15
    assert float(rows[5]["score.json"]) == 0.78
    assert rows[-1]["score.json"] == ""
    assert rows[-1]["latency_s"] == "0.004"


def test_json_is_strict_and_names_its_format(runs, tmp_path):
    report(runs, tmp_path / "a.json")
    values = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (values["format"], values["version"]) == ("edgetune-report", 1)
    assert len(values["runs"]) == 3


def test_markdown_escapes_what_would_break_a_table(tmp_path):
    run = make_run(tmp_path / "run")
    report([run], tmp_path / "a.md", title="a | b <b>")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert text.startswith("# a \\| b &lt;b\\>\n")
    assert "| int4 bundle | run | 78.0% (73.0% to 82.0%) |" in text
    assert "835 MiB planned, 900 MiB measured" in text


def test_the_front_holds_what_no_other_equals_or_beats():
    def model(name, memory, score):
        return Model("run", name, name, {"peak_bytes": Number(memory), "score": Number(score)})

    from edgetune.report.columns import column

    models = [model("a", 1, 0.2), model("b", 2, 0.5), model("c", 3, 0.4), model("d", 2, 0.3)]
    assert [item.name for item in front(models, column("peak_bytes"), column("score"))] == ["a", "b"]


def test_the_verb_prints_the_file_and_names_what_it_left_out(runs, tmp_path):
    out = tmp_path / "page.html"
    result = invoke(runs[0], tmp_path / "nothing", "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert result.stderr == f"left out: {tmp_path}/nothing: no such file\n"
    assert "good" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["[]", "{", '{"restarts": []}', '{"results": 3}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_text(text)
    result = invoke(path, "--out", tmp_path / "a.html")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"nothing to report: {path}: " in result.stderr
    assert not (tmp_path / "a.html").exists()


def test_json_output_is_one_document(runs, tmp_path):
    values = json.loads(invoke(runs[0], "--out", tmp_path / "a.md", "--json").stdout)
    assert values["models"] == 6
    assert values["left_out"] == []


def test_a_file_that_is_there_is_replaced_by_force_alone(runs, tmp_path):
    out = tmp_path / "a.html"
    out.write_text("mine")
    assert invoke(runs[0], "--out", out).exit_code == 2
    assert out.read_text() == "mine"
    assert invoke(runs[0], "--out", out, "--force").exit_code == 0


def test_what_is_read_is_never_replaced(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_report()))
    before = path.read_bytes()
    result = invoke(path, "--out", path, "--force")
    assert (result.exit_code, path.read_bytes()) == (2, before)


@pytest.mark.parametrize("name", ["a.doc", "a"])
def test_a_name_of_no_format_is_refused(runs, tmp_path, name):
    with pytest.raises(RunError, match="give --format"):
        report(runs, tmp_path / name)


def test_nothing_to_draw_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    for path in (run / "results").glob("*.json"):
        path.unlink()
    with pytest.raises(RunError, match="nothing to draw"):
        report([run], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def python(arguments, blocked):
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"from edgetune.cli import main\nmain({[str(item) for item in arguments]!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edgetune.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S, check=False, env=environment
    )


def test_a_page_needs_jinja_and_nothing_of_training(runs, tmp_path):
    training = ["torch", "transformers", "peft", "onnx", "onnxruntime", "vl_convert", "numpy", "matplotlib"]
    done = python(["report", runs[0], "--out", tmp_path / "a.html"], training)
    assert done.returncode == 0, done.stderr
    missing = python(["report", runs[0], "--out", tmp_path / "b.html"], ["jinja2"])
    assert missing.returncode == 3
    assert "jinja2 is not installed; install EdgeTune again: pip install edgetune" in missing.stderr
    assert not (tmp_path / "b.html").exists()
    assert python(["report", runs[0], "--out", tmp_path / "b.md"], ["jinja2"]).returncode == 0


@pytest.mark.slow
def test_the_plotting_library_is_what_its_script_makes():
    from edgetune.report.vega import FILE, make

    assert FILE.read_text(encoding="utf-8") == make()
