"""What is loaded when: `--help` stays light, and the device part works where nothing else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from patience import LONG_S

REPOSITORY = Path(__file__).parent.parent
RUNTIME = sorted(path.stem for path in (REPOSITORY / "edgetune/runtime").glob("[a-z]*.py"))
DEVICE = {"jinja2", "markupsafe", "numpy", "onnxruntime", "onnxruntime_genai", "tokenizers"}
ABSENT = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors", "onnx")
LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"
HELP = """
import sys
sys.argv = ["edgetune", "--help"]
from edgetune.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (None, 0), end.code
"""
MOST_ADDED_MODULES = 70
"""Beside click's own, 55 when this was written. One careless import brings: http.client 30, asyncio 51, numpy 95."""
WITHOUT_TRAINING = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: object) -> str:
    """stdout of a fresh interpreter with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=LONG_S, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@cache
def loaded(code: str) -> frozenset[str]:
    """What stands in sys.modules after `code` in a fresh interpreter."""
    return frozenset(json.loads(python(f"{code}\n{LOADED}").splitlines()[-1]))


def third_party(code: str) -> set[str]:
    """Packages of neither the standard library nor ours that are loaded after `code`, those of start-up left out."""
    packages = {name.partition(".")[0] for name in loaded(code) - loaded("")}
    return packages - sys.stdlib_module_names - {"edgetune", "__mp_main__"}


def test_help_loads_only_the_standard_library_click_and_edgetune() -> None:
    assert third_party(HELP) <= {"click", "colorama"}


def test_every_verbs_help_is_as_light() -> None:
    code = """
from click.testing import CliRunner
from edgetune.cli import main
for verb in main.commands:
    assert CliRunner().invoke(main, [verb, "--help"]).exit_code == 0
"""
    assert third_party(code) <= {"click", "colorama"}


def test_help_loads_few_modules() -> None:
    """What its time goes into; the time itself is measured by benchmarks/start.py."""
    added = loaded(HELP) - loaded("import click")
    assert len(added) <= MOST_ADDED_MODULES, sorted(added)


@pytest.mark.parametrize("module", RUNTIME)
def test_a_runtime_module_loads_only_the_device_packages(module: str) -> None:
    assert third_party(f"import edgetune.runtime.{module}") <= DEVICE


def test_importing_edgetune_loads_nothing_else() -> None:
    assert third_party("import edgetune") == set()


def test_a_bundle_runs_where_nothing_for_training_is_installed(tiny_bundle: Path) -> None:
    code = f"""{WITHOUT_TRAINING}
from edgetune.runtime.bundle import check_hashes, open_bundle
from edgetune.runtime.conversation import Conversation
from edgetune.runtime.decoder import Decoder
from edgetune.runtime.logits import Logits

bundle = open_bundle(sys.argv[1])
check_hashes(bundle)
decoder = Decoder(bundle)
result = decoder.generate("turn on the lamp", max_new_tokens=8)
assert Conversation(decoder).answer("turn on the lamp", max_new_tokens=8).token_ids == result.token_ids
ids = decoder.token_ids("turn on the lamp")
assert int(Logits(bundle).logits(ids)[-1].argmax()) == result.token_ids[0]
assert not [name for name in {ABSENT} if name in sys.modules]
print(len(result.token_ids))
"""
    assert python(code, tiny_bundle) == "8\n"


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_the_device_verbs_run_where_nothing_for_training_is_installed(tiny_bundle: Path, verb: str) -> None:
    code = f"""{WITHOUT_TRAINING}
import io
from edgetune.cli import main

sys.stdin = io.TextIOWrapper(io.BytesIO(b"turn on the lamp\\n"), encoding="utf-8")
sys.argv = ["edgetune", sys.argv[1], sys.argv[2], "--max-new-tokens", "5"]
main()
"""
    assert len(python(code, verb, tiny_bundle)) > 1


def test_texts_are_classified_where_nothing_for_training_is_installed(word_bundle: Path) -> None:
    """Nor is onnxruntime-genai loaded, which writes text only."""
    code = f"""{WITHOUT_TRAINING}
from edgetune.cli import main

sys.argv = ["edgetune", "classify", sys.argv[1], "my card has not arrived"]
try:
    main()
finally:
    assert not [name for name in (*{ABSENT}, "onnxruntime_genai") if name in sys.modules]
"""
    assert python(code, word_bundle) == "card\t0.9993\n"


def test_the_readmes_three_lines_answer(tiny_bundle: Path) -> None:
    code = f"""
from edgetune.runtime.decoder import Decoder
decoder = Decoder({str(tiny_bundle)!r})
print(decoder.generate("turn on the lamp in the kitchen", max_new_tokens=5).text)
"""
    assert python(code).strip()
