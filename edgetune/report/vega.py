"""Makes page/vega.js, the plotting library that every page carries: `python -m edgetune.report.vega`.

Needs vl-convert-python, which holds Vega, Vega-Lite and vega-embed and bundles them without a network. The file is in
the repository, so that writing a page needs neither it nor the seconds it takes.
"""

from __future__ import annotations

from pathlib import Path

from edgetune.files import write_text

FILE = Path(__file__).parent / "page" / "vega.js"
VEGA_LITE = "6.4"
NOTICE = """\
/*! Vega, Vega-Lite and vega-embed (BSD-3-Clause), with d3 and topojson-client (ISC) and what they use. Licences:
edgetune/report/page/README.md. Made by edgetune/report/vega.py: do not edit. */
"""


def make() -> str:
    """The script: sets window.vegaEmbed."""
    import vl_convert

    made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return NOTICE + made


if __name__ == "__main__":
    write_text(FILE, make())
