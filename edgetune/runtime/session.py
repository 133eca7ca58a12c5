"""How a bundle is loaded: onnxruntime-genai, plain onnxruntime, and the threads both get."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from edgetune.errors import BundleError, MissingExtraError, PromptError, shown
from edgetune.files import read_json
from edgetune.runtime.bundle import AGAIN, GENAI_CONFIG, TOKENIZER, Bundle, adapter_file, choose_adapter, open_bundle

SPIN_US = 20
"""Microseconds that a thread which waits for another stays awake before it sleeps. It is what an idle device needs: the
next operator is there by then. Awake for longer it takes a busy device's core from the work that it waits for
(benchmarks/README.md, "Beside other work")."""
MOST_SPIN_US = 1_000_000
SILENT = 4
"""onnxruntime's log level at which it prints fatal errors only: it raises the others too."""
MOST_CHARACTERS = 300


def as_bundle(bundle: Bundle | Path | str, *, adapter: str | None = None) -> Bundle:
    """The bundle itself, or the one opened at a path; with `adapter` active, if one is named. Raises BundleError."""
    found = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return found if adapter is None else choose_adapter(found, adapter)


def import_genai() -> Any:
    """The onnxruntime_genai module, with its telemetry off. Raises MissingExtraError with the line that installs it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library loads
    try:
        return importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime-genai cannot be loaded: {error}", cure='install it: pip install "onnxruntime-genai>=0.18"'
        ) from None


def spin_options(spin_us: int) -> dict[str, str]:
    """onnxruntime's session options for how long threads spin; older releases know only whether they do.

    Raises PromptError unless `spin_us` is from 0 (sleep at once) to a second.
    """
    if not 0 <= spin_us <= MOST_SPIN_US:
        raise PromptError(f"spin_us is {spin_us}, must be from 0 to {MOST_SPIN_US:,}")
    return {
        "session.intra_op.allow_spinning": "1" if spin_us else "0",
        "session.intra_op.spin_duration_us": str(spin_us or 1),
    }


def genai_config(bundle: Bundle, *, threads: int | None = None, spin_us: int = SPIN_US) -> Any:
    """onnxruntime-genai's Config of a bundle with EdgeTune's thread settings laid over it.

    Raises BundleError, and PromptError for `spin_us` out of range.
    """
    og = import_genai()
    read_json(bundle.path / GENAI_CONFIG, BundleError, cure=AGAIN)  # the library's own reader dies of deep nesting
    options: dict[str, Any] = {**spin_options(spin_us), "log_severity_level": SILENT}
    count = threads or usable_cores()
    if count:
        options["intra_op_num_threads"] = count
    try:
        config = og.Config(str(bundle.path))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    except Exception as error:  # the library raises bare RuntimeError and its own types
        raise load_error(bundle, error) from None
    return config


def embedding_rows(bundle: Bundle) -> int | None:
    """How many tokens the bundle's model has vectors for; its tokenizer may know more. Raises BundleError."""
    model = read_json(bundle.path / GENAI_CONFIG, BundleError, cure=AGAIN).get("model")
    rows = model.get("vocab_size") if isinstance(model, dict) else None
    return rows if isinstance(rows, int) else None


def check_tokens(ids: Iterable[int], rows: int | None, tokenizer: tokenizers.Tokenizer | None = None) -> None:
    """Raises PromptError for a token that a model with `rows` vectors has none for: int4 graphs would answer it."""
    wrong = next((token for token in ids if rows is not None and token >= rows), None)
    if wrong is not None:
        text = tokenizer.id_to_token(wrong) if tokenizer is not None else None
        raise PromptError(
            f"the prompt holds the token {wrong if text is None else f'{shown(text)}, number {wrong}'}, and the model "
            f"has vectors for {rows} tokens",
            cure="write it without that",
        )


def open_session(bundle: Bundle, graph: str, *, threads: int | None = None, spin_us: int = SPIN_US) -> Any:
    """An onnxruntime session of a graph in a bundle, all its optimisations on. Raises as `genai_config` does."""
    import onnxruntime  # here, because text generation does without it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads or usable_cores() or 0
    for name, value in spin_options(spin_us).items():
        options.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(str(bundle.path / graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises one type for each of its status codes
        raise load_error(bundle, error) from None


def open_adapter(bundle: Bundle) -> Any:
    """The bundle's active adapter as onnxruntime's LoraAdapter, or None where none is. Raises BundleError."""
    if bundle.adapter is None:
        return None
    import onnxruntime

    adapter = onnxruntime.LoraAdapter()
    try:
        adapter.Load(str(bundle.path / adapter_file(bundle.adapter)))
    except Exception as error:  # onnxruntime raises one type for each of its status codes
        raise load_error(bundle, error) from None
    return adapter


def run_options(adapter: Any) -> Any:
    """RunOptions that feed an adapter, which must outlive them, to the graph; None for none."""
    if adapter is None:
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options


def load_tokenizer(bundle: Bundle) -> tokenizers.Tokenizer:
    """A bundle's tokenizer, neither cutting nor padding. Raises BundleError."""
    with tokenizing(bundle, "cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_text(text: str, *, what: str = "prompt") -> None:
    """Raises PromptError for text that cannot be written as UTF-8: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"the {what} is not valid UTF-8 text") from None


@contextlib.contextmanager
def tokenizing(bundle: Bundle, what: str = "cannot encode a text") -> Iterator[None]:
    """Whatever tokenizers raises in the block becomes a BundleError that names tokenizer.json."""
    try:
        yield
    except BaseException as error:  # bare Exception, and a Rust panic is not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{bundle.path / TOKENIZER}: {what}: {_reason(error)}", cure=AGAIN) from None


def load_error(bundle: Bundle, error: Exception, *, what: str = "loaded") -> BundleError:
    """What to tell when a runtime library refuses a bundle: the first line of what it says."""
    return BundleError(f"{bundle.path}: cannot be {what}: {_reason(error)}", cure=AGAIN)


def _reason(error: BaseException) -> str:
    """The first line of an error, cut where it is long: onnxruntime names all of a C++ function's parameters."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."


def usable_cores() -> int | None:
    """Physical cores this process may use, by affinity, hyper-threading and cgroup quota; None where unknown.

    Two threads on one core, or more threads than the quota allows, wait for each other while they spin.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = {siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota_cores()))


def siblings(cpu: int) -> str:
    """The hyper-threads that share a core with `cpu`, as the system writes them; `cpu` alone where it does not say."""
    with contextlib.suppress(OSError):
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    return str(cpu)


def _quota_cores() -> int:
    """Cores the cgroup grants; a large number without a quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))  # "max" is no number: no quota
    return 1 << 16
