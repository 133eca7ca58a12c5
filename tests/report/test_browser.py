"""The page in a real browser: it draws, answers the pointer and the keyboard, and complains of nothing.

`make test-browser` runs these tests. They need Chromium: `apt-get install chromium`, or $CHROMIUM names the program.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
from made_run import bench_report, encoder_target, make_label_run, make_run

from edgetune.report.write import report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:  # who asks for these tests wants them run
        pytest.fail("no Chromium is installed, and $CHROMIUM names none: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    labels = tuple(f"intent {number}" for number in range(30))
    runs = [make_run(folder / "first"), make_run(folder / "second", score=0.6, seed=1)]
    runs += [make_label_run(folder / "few"), make_label_run(folder / "many", labels)]
    (folder / "bench.json").write_text(json.dumps(bench_report()), encoding="utf-8")
    encoders = {**bench_report(), "targets": [encoder_target("words")]}
    (folder / "encoders.json").write_text(json.dumps(encoders), encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")
    report([*runs, *(folder / f"{name}.json" for name in ("bench", "encoders", "broken"))], folder / "report.html")
    return folder / "report.html"


class Watched:
    """An open page, and what it complained of or asked for."""

    def __init__(self, browser, file, **settings):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []
        self.page.goto(file.as_uri())

    def scroll_through(self):
        """Open everything and pass by it, so that every chart is drawn."""
        self.page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
        for place in self.page.query_selector_all("[data-chart]"):
            place.scroll_into_view_if_needed()
            place.wait_for_selector("svg", state="attached")


@pytest.fixture
def watched(browser, file):
    opened = []

    def watch(**settings):
        opened.append(Watched(browser, file, **settings))
        return opened[-1]

    yield watch
    for item in opened:
        item.context.close()


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
def test_every_chart_is_drawn_without_a_complaint_or_a_request(watched, file, settings):
    found = watched(**settings)
    found.scroll_through()
    charts = found.page.query_selector_all("[data-chart]")
    assert len(charts) == 3 + 2 + 2 + 1  # frontier, losses, planner; ledgers; searches; the confusion of 30 labels
    for chart in charts:
        assert len(chart.query_selector_all("svg path, svg rect")) > 3, chart.get_attribute("data-chart")
    assert found.complaints == []
    assert found.requests == [file.as_uri()]


def test_a_point_under_the_pointer_tells_what_it_is(watched):
    page = watched().page
    page.wait_for_selector("[data-chart=frontier] svg")
    points = page.query_selector_all("[data-chart=frontier] .mark-symbol.role-mark path")
    assert len(points) == 12  # both decoders; the classifiers have another score
    points[-1].hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = page.inner_text("#vg-tooltip-element")
    assert "bundle" in told
    assert "83.0 MiB" in told
    assert "same JSON" in told


def test_other_axes_draw_another_frontier(watched):
    page = watched().page
    page.wait_for_selector("[data-chart=frontier] svg")
    page.select_option("#axis-x", "disk_bytes")
    page.select_option("#axis-y", "score.accuracy")
    page.wait_for_function("document.querySelector('[data-chart=frontier]').textContent.includes('accuracy (%)')")
    assert len(page.query_selector_all("[data-chart=frontier] .mark-symbol.role-mark path")) == 7
    assert "have no such numbers and are not drawn" in page.inner_text("#frontier-said")


def test_the_theme_follows_the_system_and_the_button(watched):
    found = watched(color_scheme="dark")
    page = found.page
    page.wait_for_selector("[data-chart=frontier] svg")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.evaluate(colour) != dark
    assert page.get_attribute("#theme", "aria-label") == "Switch to dark colours"
    assert found.complaints == []


def test_a_table_is_sorted_from_the_keyboard_with_what_is_missing_last(watched):
    page = watched().page
    heads = page.query_selector_all("#models table >> nth=0 >> thead th")
    place = next(number for number, head in enumerate(heads) if head.inner_text().startswith("same JSON"))
    heads[place].query_selector("button").focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Space")
        assert heads[place].get_attribute("aria-sort") == order
        cells = page.query_selector_all(f"#models table >> nth=0 >> tbody tr > :nth-child({place + 1})")
        values = [cell.get_attribute("data-value") for cell in cells]
        known = [float(value) for value in values if value is not None]
        assert values[len(known) :] == [None] * (len(values) - len(known))
        assert known == sorted(known, reverse=order == "descending")


def test_a_phone_scrolls_down_and_not_sideways(watched):
    found = watched(viewport={"width": 360, "height": 740})
    found.scroll_through()
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_tables_are_whole_without_javascript(watched):
    page = watched(java_script_enabled=False).page
    assert "83.0 MiB" in page.inner_text("#models")
    assert page.locator("#models table").first.is_visible()
    assert not page.locator("[data-chart=frontier]").is_visible()
    assert not page.locator("#theme").is_visible()


def test_the_keyboard_reaches_the_results_first(watched):
    page = watched().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the results"


@pytest.mark.parametrize("width", [360, 1280])
def test_every_name_in_a_legend_is_whole(watched, width):
    found = watched(viewport={"width": width, "height": 800})
    found.scroll_through()
    inside = """(text) => {
      const [mine, all] = [text, text.ownerSVGElement].map((item) => item.getBoundingClientRect());
      return mine.left >= all.left - 1 && mine.right <= all.right + 1;
    }"""
    labels = found.page.query_selector_all("[data-chart=frontier] .role-legend-label text")
    assert len(labels) == 6 + 2  # stages, and the two runs
    assert all(label.evaluate(inside) for label in labels)


def test_twenty_runs_are_drawn_where_they_are_looked_at(browser, tmp_path):
    """So that a page of many runs opens as fast as one of a single run."""
    runs = [make_run(tmp_path / f"run-{number:02}", seed=number) for number in range(20)]
    report(runs, tmp_path / "report.html")
    found = Watched(browser, tmp_path / "report.html")
    found.page.wait_for_selector("[data-chart=frontier] svg")
    found.page.evaluate("scrollTo(0, 0)")
    drawn = len(found.page.query_selector_all("[data-drawn]"))
    assert 1 <= drawn < len(found.page.query_selector_all("[data-chart]")) / 4
    assert found.complaints == []
    found.context.close()
