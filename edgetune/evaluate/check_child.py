"""The process that runs the user's check: `python -m edgetune.evaluate.check_child FILE`, started by check.py.

Says {"ready": true} or {"error": ...}, then answers each question on stdin, one JSON object a line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Import the file, answer until stdin ends. What the check prints is thrown away."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: Mapping[str, Any]) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    try:
        check = load(Path(sys.argv[1]))
    except (Exception, SystemExit) as error:
        say({"error": f"cannot be imported: {_told(error)}"})
        return
    if check is None:
        say({"error": "has no function check"})
        return
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            say({"passed": bool(check(question["answer"], question["row"]))})
        except (Exception, SystemExit) as error:
            say({"error": _told(error)})


def load(path: Path) -> Callable[[str, Mapping[str, Any]], Any] | None:
    """The function `check` of a file, whose folder can be imported from; None if it has none."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location("edgetune_user_check", path)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check = getattr(module, "check", None)
    return check if callable(check) else None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


if __name__ == "__main__":
    main()
