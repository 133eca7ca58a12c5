"""A .gguf file as a base: dequantised once into a model folder, which then serves as any other.

Architecture, tokenizer and chat template are the file's own. `base = "model.gguf"` -> resolve_base -> here.
Reading is transformers' own; what it cannot read is named before any weight is touched.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.child_process import answer, ask
from edgetune.errors import MissingExtraError, ModelError, first_line
from edgetune.files import atomic_folder, read_json, write_json
from edgetune.hashes import hash_values
from edgetune.model.quiet import quiet
from edgetune.progress import Progress

RECORD = "gguf.json"
"""Beside the weights: of which file they are."""
LOSSLESS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NEARLY = "Q8_0"
"""Rounded to 8 bits: what that lost is less than what training and export round by."""
INSTALL = "install it: pip install 'edgetune[gguf]'"


def gguf_folder(file: Path, *, progress: Progress | None = None) -> Path:
    """The model folder made of a .gguf file, now, which is told, or before, in EdgeTune's cache.

    Weights are stored in the type that the file has most of its matrices in, those that it has rounded in float16.
    Raises ModelError for a file, an architecture or a kind of weights that cannot be read, MissingExtraError.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf is not installed; a .gguf base needs it", cure=INSTALL)
    state = file.resolve().stat()
    folder = cache() / "gguf" / hash_values(str(file.resolve()), state.st_size, state.st_mtime_ns)[:32]
    if not (folder / RECORD).is_file():
        request = {"name": str(file), "file": str(file.resolve()), "folder": str(folder)}
        _refuse_unwritable(folder)
        cure = "close other programs: the whole model is read at once"
        ask(["-m", __name__], request, name=str(file), cure=cure, progress=progress)
    return folder


def _refuse_unwritable(folder: Path) -> None:
    """Raises ModelError where the cache cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: cannot be written: {error.strerror}; the model of a .gguf base is kept there",
            cure="set EDGETUNE_CACHE to a folder that can be",
        ) from None


def make(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Dequantise a file into a folder, in a process of its own, whose memory goes back with it. Raises ModelError."""
    file = Path(request["file"])
    kinds = _kinds(file)
    told = f"{request['name']}: dequantising it into {request['folder']}, which is done once"
    progress({"stage": "base", "message": told})
    with atomic_folder(Path(request["folder"])) as folder:
        _dequantise(file, folder, _stored_type(kinds))
        write_json(folder / RECORD, {"file": file.name, "weights": dict(kinds)})
    return {}


def gguf_note(folder: Path) -> str | None:
    """What a user should know of a base whose weights were rounded before; None of all others."""
    if not (folder / RECORD).is_file():
        return None
    record = read_json(folder / RECORD)
    rounded = [kind for kind in record["weights"] if kind not in (*LOSSLESS, NEARLY)]
    if not rounded:
        return None
    return (
        f"{record['file']}: its weights were rounded to {', '.join(sorted(rounded))} once, and what that lost is lost: "
        "the fine-tune begins there. The 16-bit original, or a Q8_0 file, begins better"
    )


def cache() -> Path:
    """Where EdgeTune keeps what it made of users' files."""
    return Path(os.environ.get("EDGETUNE_CACHE") or Path.home() / ".cache" / "edgetune").expanduser()


def _kinds(file: Path) -> Counter[str]:
    """How many weights a file has of each kind, matrices alone. Raises ModelError for what is no such file."""
    import gguf

    try:
        tensors = gguf.GGUFReader(str(file)).tensors
        kinds = Counter[str]()
        for tensor in tensors:
            if len(tensor.shape) > 1:
                kinds[tensor.tensor_type.name] += int(tensor.n_elements)
    except Exception as error:  # a broken header raises what it happens to hit
        raise ModelError(f"{file}: cannot be read: cut off, or no .gguf file", cure="fetch it again") from error
    if not kinds:
        raise ModelError(f"{file}: holds no weights", cure="give the file of the model, not of its vocabulary alone")
    return kinds


def _stored_type(kinds: Counter[str]) -> torch.dtype:
    """Of the kind that most weights are in; float16 of those that were rounded."""
    return LOSSLESS.get(kinds.most_common(1)[0][0], torch.float16)


def _dequantise(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write model, tokenizer and settings of a file into an empty folder. Raises ModelError."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    named: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with quiet():
            AutoConfig.from_pretrained(file.parent, **named)  # an architecture that it does not know ends here
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **named)
            del model.config.quantization_config, model.hf_quantizer  # what it holds is quantised no more
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError:
        raise  # of the disk
    except Exception as error:  # transformers has one for each thing that it does not read
        raise ModelError(
            f"{file}: cannot be read as a base: {first_line(error)}",
            cure="give the model it was made from, a folder or hub id with 16-bit safetensors",
        ) from None


if __name__ == "__main__":
    sys.exit(answer(make))
