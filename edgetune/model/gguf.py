"""A .gguf file, run by llama.cpp through its own C calls, so that no Python wrapper costs it time.

Its weights stay on the processor. llama.cpp keeps keys and values in float16 unless told otherwise, and so it is here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.errors import MissingExtraError, ModelError, PromptError
from edgetune.runtime.logits import negative_log_likelihood
from edgetune.runtime.session import usable_cores

SUFFIX = ".gguf"
CHUNK = 64
"""Tokens whose logits are held at once while taking losses."""
_UBATCH = 512
_ERROR = 4
"""ggml's log level of errors."""


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a .gguf file, there or not."""
    return Path(path).suffix == SUFFIX


def require_llama_cpp() -> None:
    """Raises MissingExtraError if llama-cpp-python is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError(
            "llama-cpp-python is not installed; .gguf files need it", cure="install it: pip install 'edgetune[bench]'"
        )


class Gguf:
    """A loaded .gguf file."""

    def __init__(self, path: Path, *, threads: int | None = None, is_vocabulary_only: bool = False) -> None:
        """`threads` defaults to the physical cores this process may use. Raises ModelError, MissingExtraError."""
        require_llama_cpp()
        if not path.is_file():
            raise ModelError(f"{path}: no such file", cure="give a .gguf file")
        self.path, self._threads = path, threads or usable_cores() or 1
        self._api, self._log = _open_library()
        params = self._api.llama_model_default_params()
        params.vocab_only, params.n_gpu_layers = is_vocabulary_only, 0
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelError(f"{path}: cannot be loaded: {(self._log or ['llama.cpp does not say why'])[0]}")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._context: Any = None
        self._size = 0
        self.context_length = int(self._fact(f"{self._fact('general.architecture')}.context_length") or 0)
        self.vocabulary = int(self._api.llama_vocab_n_tokens(self._vocab))

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the file."""
        found = self._api.llama_model_chat_template(self._model, None)
        return found.decode() if found else None

    @property
    def bos_id(self) -> int | None:
        """None where there is none."""
        found = int(self._api.llama_vocab_bos(self._vocab))
        return found if found >= 0 else None

    @property
    def eos_id(self) -> int | None:
        """None where there is none."""
        found = int(self._api.llama_vocab_eos(self._vocab))
        return found if found >= 0 else None

    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which llama.cpp ends an answer."""
        return tuple(i for i in range(self.vocabulary) if self._api.llama_vocab_is_eog(self._vocab, i))

    def control_ids(self) -> tuple[int, ...]:
        """Tokens that stand for no text."""
        return tuple(i for i in range(self.vocabulary) if self._api.llama_vocab_is_control(self._vocab, i))

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        return str(self._api.llama_vocab_get_text(self._vocab, token_id).decode())

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens in the text are those tokens."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
        return [int(token_id) for token_id in ids[:count]]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones left out."""
        array = (self._api.llama_token * len(ids))(*ids)
        room = 32 * len(ids) + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._api.llama_detokenize(self._vocab, array, len(ids), buffer, room, False, False)
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            room = -count

    def stream(self, ids: Sequence[int], *, new_tokens: int) -> Iterator[int]:
        """The likeliest next tokens after a prompt, one by one, until the caller has enough or there are `new_tokens`.

        Raises PromptError if they do not fit the context.
        """
        self._reserve(len(ids) + new_tokens)
        token = self._decode(ids)
        yield token
        for _ in range(new_tokens - 1):
            token = self._decode([token])
            yield token

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds that each new token takes, the prefill in the first; no end token ends it."""
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in self.stream(ids, new_tokens=new_tokens)]
        return [after - before for before, after in itertools.pairwise(times)]

    def logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """ids (T,) -> arrays (at most CHUNK, V) float32, T rows in all; row t predicts token t + 1."""
        self._reserve(len(ids))
        for start in range(0, len(ids), CHUNK):
            yield self._decode_all(ids[start : start + CHUNK], start)

    def token_losses(self, ids: Sequence[int]) -> np.ndarray:
        """ids (T,) -> (T - 1,) float32: nats of token t + 1 given all before it."""
        targets = np.asarray(ids[1:], np.int64)
        losses, start = [np.zeros(0, np.float32)], 0
        for rows in self.logits(ids[:-1]):
            losses.append(negative_log_likelihood(rows, targets[start : start + len(rows)]))
            start += len(rows)
        return np.concatenate(losses)

    def _fact(self, key: str) -> str:
        """A value of the file's header, as text; "" where it is not there."""
        buffer = ctypes.create_string_buffer(256)
        count = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if count >= 0 else ""

    def _reserve(self, tokens: int) -> None:
        """An empty context with room for so many tokens; the one there is stays if it has."""
        if not 0 < tokens <= self.context_length:
            raise PromptError(f"{tokens} tokens, the context of {self.path} holds 1 to {self.context_length}")
        if self._context and self._size >= tokens:
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
            return
        if self._context:
            self._api.llama_free(self._context)
        params = self._api.llama_context_default_params()
        params.n_ctx = params.n_batch = max(tokens, CHUNK)
        params.n_ubatch = min(_UBATCH, params.n_batch)
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = False
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(f"{self.path}: no context of {tokens} tokens: {(self._log or ['out of memory?'])[-1]}")
        self._size = tokens

    def _decode(self, ids: Sequence[int]) -> int:
        """Go on with these tokens; the likeliest next one."""
        array = (self._api.llama_token * len(ids))(*ids)
        self._run(self._api.llama_batch_get_one(array, len(ids)))
        last = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(last, (self.vocabulary,)).argmax())

    def _decode_all(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Go on with these tokens, the first at place `start`; the logits after each, (T, V) float32."""
        batch = self._api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for place, token_id in enumerate(ids):
                batch.token[place], batch.pos[place] = token_id, start + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
            self._run(batch)
        finally:
            self._api.llama_batch_free(batch)
        found = self._api.llama_get_logits(self._context)
        return np.array(np.ctypeslib.as_array(found, (len(ids), self.vocabulary)))

    def _run(self, batch: Any) -> None:
        code = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise ModelError(f"{self.path}: llama.cpp cannot run it (code {code}): {(self._log or ['no reason'])[-1]}")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be ending
            self.close()


def _open_library() -> tuple[Any, list[str]]:
    """llama.cpp's C calls, and a list that its error messages are added to from now on."""
    import llama_cpp

    messages: list[str] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR and text:
            messages.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(keep)
    _KEPT.append(callback)  # C holds no reference
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return llama_cpp, messages


_KEPT: list[Any] = []
