"""What all pictures of the page begin with: a Vega-Lite specification, as wide as its place.

Source: Vega-Lite 6, vega.github.io/vega-lite/docs.
"""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def spec(height: int, **parts: Any) -> Spec:
    """A specification `height` pixels high, with its data, encoding, mark or layers."""
    fit = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"$schema": SCHEMA, **fit, "height": height, **parts}
