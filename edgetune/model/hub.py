"""Bases from the Hugging Face hub, fetched into the hub's own cache."""

from __future__ import annotations

import sys
from pathlib import Path

from edgetune.errors import ModelError, first_line

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*")
IGNORED = ("*/*", "consolidated*", "*.bin", "*.pth", "*.msgpack", "*.h5", "*.gguf")


def fetch(base: str, revision: str | None, *, trust_remote_code: bool) -> Path:
    """The folder of a hub id's files, Python among them only if trusted. Raises ModelError that says what to do."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars_were_on = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    allowed = [*FILES, "*.py"] if trust_remote_code else list(FILES)
    local = "or give the path of a local folder"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                base, revision=revision, allow_patterns=allowed, ignore_patterns=list(IGNORED)
            )
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{base}: the hub gives it only to accounts that accepted its licence",
            cure=f"accept it on huggingface.co/{base} and set HF_TOKEN, {local}",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{base}: no revision {revision!r} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{base}: no such folder, and no such model on the hub (or a private one)",
            cure=f"check the name, set HF_TOKEN for a private model, {local}",
        ) from None
    except Exception as error:  # no network, offline mode, a proxy, a full disk: each library has its own kinds
        raise ModelError(
            f"{base}: no such folder, and the hub did not give it: {first_line(error)}",
            cure=f"check the network, fetch it once with `hf download {base}`, {local}",
        ) from None
    finally:
        if bars_were_on:
            enable_progress_bars()
