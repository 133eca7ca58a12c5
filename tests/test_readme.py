"""Every measured number in the pages comes from benchmarks/results."""

from __future__ import annotations

import re
import tomllib

import pytest

from benchmarks.readme import PAGES, PARTS, RESULTS, fill


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.name))
def test_a_page_holds_exactly_what_its_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text


def test_every_result_is_shown_on_some_page():
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.stem for path in RESULTS.glob("*.json") if f"<!-- begin {path.stem} -->" not in shown] == []
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(PARTS)


def test_every_extra_is_in_the_table_of_what_to_install():
    root = PAGES[0].parent
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = (root / "README.md").read_text(encoding="utf-8").partition("## Install")[2].partition("\n## ")[0]
    assert [name for name in extras if not re.search(rf"\[{name}\]'", text)] == []


def test_the_architecture_names_modules_that_exist():
    root = PAGES[0].parent
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|md))`", text))
    assert len(named) > 15
    assert [name for name in named if not ((root / "edgetune" / name).exists() or (root / name).exists())] == []
    assert len(text.splitlines()) <= 80
