"""Upload an adapter or a bundle with its card to the Hugging Face Hub. Nothing else in EdgeTune sends anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetune.errors import BundleError, CheckError, HubError, ModelError, first_line
from edgetune.lora.read import is_adapter, read_adapter_config
from edgetune.runtime.bundle import MANIFEST, Bundle, check_hashes, open_bundle

IGNORED = (".*", "**/.*", "*.tmp", "**/__pycache__/**")
"""Files that are no part of what is uploaded: of editors and of file managers."""


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, and where it is."""

    kind: Literal["adapter", "bundle"]
    repo_id: str
    url: str
    """Of the repository."""
    commit: str
    """Hex; that of the last upload where no file had changed."""


def push(
    folder: Path, repo_id: str, *, private: bool = False, message: str | None = None, force: bool = False
) -> Pushed:
    """Upload an adapter's or a bundle's folder into a model repository, which is made where there is none.

    The endpoint is huggingface_hub's (HF_ENDPOINT), and so is the account: HF_TOKEN, or that of `hf auth login`. A
    bundle goes only when its verification passed (or with `force`) and its files are those that were exported. Files
    that the repository has and the folder has not stay there. Raises CheckError, BundleError, ModelError before
    anything is sent, HubError when the hub does not take it.
    """
    kind = _check(folder, force=force)

    from huggingface_hub import HfApi

    with _told(repo_id), _bars_on_terminals_only():
        api = HfApi(token=True)
        url = api.create_repo(repo_id, repo_type="model", private=private or None, exist_ok=True)
        done = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=message or f"{kind.capitalize()} by EdgeTune",
            ignore_patterns=list(IGNORED),
        )
    return Pushed(kind, url.repo_id, str(url), done.oid)


def _check(folder: Path, *, force: bool) -> Literal["adapter", "bundle"]:
    """Which of the two a folder is. Raises where it should not be uploaded."""
    if (folder / MANIFEST).is_file() and not is_adapter(folder):
        bundle = open_bundle(folder)
        check_hashes(bundle)
        if not force:
            _refuse_unverified(bundle)
        return "bundle"
    if is_adapter(folder):
        read_adapter_config(folder)
        if not any(folder.glob("adapter_model*.safetensors")):
            raise ModelError(f"{folder}: no adapter_model.safetensors", cure="give a whole adapter folder")
        return "adapter"
    parts = [name for name in ("adapter", "bundle") if (folder / name).is_dir()]
    cure = f"give {' or '.join(str(folder / name) for name in parts)}" if parts else "give RUN/adapter or RUN/bundle"
    raise BundleError(f"{folder}: neither an adapter nor a bundle", cure=cure)


def _refuse_unverified(bundle: Bundle) -> None:
    """Raises CheckError unless the bundle, and each adapter beside its graph, passed its verification."""
    records = [(str(bundle.path), bundle.verified)]
    if bundle.adapters:  # the base alone is nobody's fine-tune: what was verified are they
        records = [(name, adapter.verified) for name, adapter in bundle.adapters.items()]
    for name, verified in records:
        if verified.get("passed") is not True:
            said = "failed its verification" if verified.get("passed") is False else "is not verified"
            raise CheckError(
                f"{name}: {said}, so nothing was uploaded", cure="see `edgetune verify RUN`; --force uploads it anyway"
            )


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """What goes wrong on the way becomes one HubError; each library below has kinds of its own."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise HubError(
            f"{repo_id}: no account to upload with", cure="set HF_TOKEN, or log in with `hf auth login`"
        ) from None
    except errors.HFValidationError as error:
        raise HubError(f"{repo_id}: no name of a repository: {first_line(error)}", cure="e.g. name/model") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise HubError(
                f"{repo_id}: the hub does not know this token", cure="set HF_TOKEN to one that may write"
            ) from None
        if status == 403:
            raise HubError(
                f"{repo_id}: this token may not write there", cure="take one that may write, or a name of your own"
            ) from None
        raise HubError(f"{repo_id}: the hub refused: {first_line(error)}") from None
    except Exception as error:
        raise HubError(
            f"{repo_id}: the hub was not reached: {first_line(error.__cause__ or error)}",
            cure="check the network and HF_ENDPOINT; what was uploaded is not sent again",
        ) from None


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was_on = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            enable_progress_bars()
