"""One training of benchmarks.planner in a process of its own: prints one JSON line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train


def main() -> None:
    """Arguments: recipe, run folder."""
    result = train(load_recipe(Path(sys.argv[1])), RunDir(Path(sys.argv[2])))
    print(json.dumps({"peak_mib": result.peak_bytes / 1024**2, "tokens_per_s": result.tokens_per_s}))


if __name__ == "__main__":
    main()
