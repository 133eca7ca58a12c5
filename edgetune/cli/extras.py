"""Extras that are not installed: an import that fails inside a verb becomes one line that says what to install."""

from __future__ import annotations

from edgetune.errors import MissingExtraError

TRAIN_MODULES = frozenset(
    {
        "accelerate",
        "bitsandbytes",
        "datasets",
        "huggingface_hub",
        "httpx",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "peft",
        "psutil",
        "pyarrow",
        "safetensors",
        "scipy",
        "sklearn",
        "torch",
        "transformers",
    }
)
"""Modules that `edgetune[train]` brings, by the name they are imported under."""
REPORT_MODULES = frozenset({"matplotlib"})
"""Modules that `edgetune[report]` brings, and `edgetune[train]` too."""
TUNE_MODULES = frozenset({"alembic", "cmaes", "filelock", "optuna", "sqlalchemy"})
"""Modules that `edgetune[tune]` brings on top."""
RAY_MODULES = frozenset({"ray"})
"""Modules that `edgetune[ray]` brings on top of that."""
DEVICE_MODULES = frozenset({"jinja2", "markupsafe", "numpy", "onnxruntime", "onnxruntime_genai", "tokenizers"})
"""Modules that `edgetune` alone brings: missing only in a broken installation."""


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """What to tell when a module is missing; None if it is none of ours, which makes it a bug."""
    module = (error.name or "").partition(".")[0]
    if module in TRAIN_MODULES:
        return MissingExtraError(
            f"{module} is not installed; training and export need it", cure="install it: pip install 'edgetune[train]'"
        )
    if module in REPORT_MODULES:
        return MissingExtraError(
            f"{module} is not installed; pictures need it", cure="install it: pip install 'edgetune[report]'"
        )
    if module in TUNE_MODULES:
        return MissingExtraError(
            f"{module} is not installed; the search for hyperparameters needs it",
            cure="install it: pip install 'edgetune[tune]'",
        )
    if module in RAY_MODULES:
        return MissingExtraError(
            f"{module} is not installed; population-based training needs it",
            cure="install it: pip install 'edgetune[ray]'",
        )
    if module in DEVICE_MODULES:
        return MissingExtraError(f"{module} is not installed", cure="install EdgeTune again: pip install edgetune")
    return None
