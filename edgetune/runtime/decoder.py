"""Generate text from a decoder bundle by onnxruntime-genai: the loop on the device.

decoder = Decoder("runs/quickstart/bundle")
print(decoder.generate("turn on the lamp in the kitchen").text)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgetune.errors import PromptError
from edgetune.runtime.bundle import Bundle, adapter_file, choose_adapter
from edgetune.runtime.prompt import Message, Prompter, TextStream, Tools
from edgetune.runtime.session import (
    SPIN_US,
    as_bundle,
    check_tokens,
    embedding_rows,
    genai_config,
    import_genai,
    load_error,
)

Prompt = str | Sequence[Message] | Sequence[int]
"""A user's text, a conversation, or token ids taken as they are (`Decoder.prompter.text_ids` makes them)."""


@dataclass(frozen=True)
class Generation:
    """One answer and what it took."""

    text: str
    token_ids: tuple[int, ...]
    """The new tokens, end-of-turn token left out."""
    prompt_tokens: int
    stop_reason: Literal["end", "length"]
    """end: the model ended its turn; length: max_new_tokens or the context was reached."""
    prefill_s: float
    """From the prompt's ids to the first new token's text."""
    decode_s: float
    """From there to the last token, time spent by the receiver of the text left out."""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed, 0 for one token: the first counts to the prefill, an end-of-turn token costs as any other."""
        steps = len(self.token_ids) - 1 + (self.stop_reason == "end")
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else 0.0


class Decoder:
    """A loaded decoder bundle: `bundle` says what it is, `prompter` renders and encodes for it."""

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        threads: int | None = None,
        spin_us: int = SPIN_US,
        adapter: str | None = None,
    ) -> None:
        """Load; `threads` defaults to the physical cores this process may use, `adapter` to the bundle's own choice.

        `spin_us`: microseconds that a waiting thread stays awake, 0 to sleep at once. More is no faster on an idle
        device and slower on a busy one. Raises BundleError, MissingExtraError, PromptError for `spin_us` out of range.
        """
        self.bundle = as_bundle(bundle, adapter=adapter)
        self.prompter = Prompter(self.bundle)
        config = genai_config(self.bundle, threads=threads, spin_us=spin_us)
        self._embedding_rows = embedding_rows(self.bundle)
        try:
            self._model = import_genai().Model(config)
        except Exception as error:  # the library raises bare RuntimeError and its own types
            raise load_error(self.bundle, error) from None
        self._adapters: Any = None
        self._loaded: set[str] = set()
        self._load_adapter()

    def switch_adapter(self, name: str) -> None:
        """Answer with another adapter of the bundle from now on; "none" is the base. Raises BundleError."""
        self.bundle = choose_adapter(self.bundle, name)
        self._load_adapter()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        tools: Tools | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> Generation:
        """The answer to a prompt; `on_text` receives the text piece by piece while it is made.

        `tools`: JSON schemas of what the answer may call; the chat template writes them into the prompt. temperature 0
        takes the likeliest token each time; above it samples, the same seed giving the same text.
        Raises PromptError: empty prompt, prompt as long as the context, a setting out of range.
        """
        pieces = self.stream(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, tools=tools
        )
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return cast(Generation, end.value)
            if on_text:
                on_text(piece)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        tools: Tools | None = None,
    ) -> Generator[str, None, Generation]:
        """The answer piece by piece; the generator's return value (StopIteration.value) is the Generation.

        Everything is checked before the first piece is asked for. Raises as `generate` does.
        """
        check_settings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        ids = self.token_ids(prompt, tools=tools)
        room = self.bundle.context_length - len(ids)
        if room < 1:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, the context of {self.bundle.name} holds "
                f"{self.bundle.context_length}, answer included",
                cure="shorten it",
            )
        search = {"do_sample": temperature > 0, "top_p": top_p, "random_seed": seed}
        if temperature > 0:
            search["temperature"] = temperature
        return self._run(ids, min(max_new_tokens, room), search)

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds that each new token takes, for measuring: no end token ends the answer, no text is made of it.

        The first one has the allocation of the cache and the prefill in it. Raises PromptError, BundleError.
        """
        if len(ids) + new_tokens > self.bundle.context_length:
            raise PromptError(
                f"{len(ids)} tokens and {new_tokens} new ones, the context holds {self.bundle.context_length}"
            )
        length = len(ids) + new_tokens
        search = {"do_sample": False, "min_length": length}
        seconds = []
        start_s = time.perf_counter()
        generator = self._ask(lambda: self._generator(max_length=length, search=search))
        self._ask(lambda: generator.append_tokens(list(ids)))
        for _ in range(new_tokens):
            self._ask(generator.generate_next_token)
            generator.get_next_tokens()
            end_s = time.perf_counter()
            seconds.append(end_s - start_s)
            start_s = end_s
        return seconds

    def token_ids(self, prompt: Prompt, *, tools: Tools | None = None) -> list[int]:
        """The ids that a prompt is to the model. Text becomes a user message where the bundle has a chat template.

        Raises PromptError, also for tools beside a prompt that no template renders, and for a token that the model has
        no vector for.
        """
        ids = self._ids(prompt, tools)
        check_tokens(ids, self._embedding_rows, self.prompter.tokenizer)
        return ids

    def _ids(self, prompt: Prompt, tools: Tools | None) -> list[int]:
        if isinstance(prompt, str) and self.bundle.chat_format.template is not None:
            return self.prompter.chat_ids([{"role": "user", "content": prompt}], tools=tools)
        if prompt and isinstance(prompt[0], Mapping):
            return self.prompter.chat_ids(cast(Sequence[Message], prompt), tools=tools)
        if tools:
            raise PromptError("tools beside a prompt that is no conversation", cure="give the prompt as messages")
        if isinstance(prompt, str):
            return self.prompter.text_ids(prompt)
        if not prompt:
            raise PromptError("the prompt is empty")
        ids = [int(token_id) for token_id in cast(Sequence[int], prompt)]
        unknown = next((i for i in ids if i < 0 or self.prompter.tokenizer.id_to_token(i) is None), None)
        if unknown is not None:
            raise PromptError(f"token {unknown} is not in the vocabulary of {self.bundle.name}")
        return ids

    def _run(self, ids: list[int], limit: int, search: dict[str, Any]) -> Generator[str, None, Generation]:
        """The loop: prefill, then one token at a time until an end-of-turn token or `limit` new ones."""
        generator = self._ask(lambda: self._generator(max_length=len(ids) + limit, search=search))
        text_stream = TextStream(self.prompter.tokenizer)
        new_ids: list[int] = []
        stop_reason: Literal["end", "length"] = "length"
        prefill_s = decode_s = 0.0
        start_s = time.perf_counter()
        self._ask(lambda: generator.append_tokens(ids))
        while len(new_ids) < limit and stop_reason == "length":
            self._ask(generator.generate_next_token)
            token_id = int(generator.get_next_tokens()[0])
            piece = ""
            if token_id in self.bundle.chat_format.eos_ids:
                stop_reason = "end"
            else:
                new_ids.append(token_id)
                piece = text_stream.push(token_id)
            step_s = time.perf_counter() - start_s
            prefill_s, decode_s = (prefill_s, decode_s + step_s) if prefill_s else (step_s, 0.0)
            if piece:
                yield piece
            start_s = time.perf_counter()  # what the caller does with a piece is not our time
        if rest := text_stream.flush():
            yield rest
        return Generation(
            text=self.prompter.decode(new_ids),
            token_ids=tuple(new_ids),
            prompt_tokens=len(ids),
            stop_reason=stop_reason,
            prefill_s=prefill_s,
            decode_s=decode_s,
        )

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call the library; a model that does not fit its genai_config.json shows only here. Raises BundleError."""
        try:
            return call()
        except MemoryError:
            raise
        except Exception as error:  # the library raises bare RuntimeError and its own types
            raise load_error(self.bundle, error, what="run") from None

    def _load_adapter(self) -> None:
        """Read the active adapter's file, once."""
        name = self.bundle.adapter
        if name is None or name in self._loaded:
            return
        if self._adapters is None:
            self._adapters = import_genai().Adapters(self._model)
        self._ask(lambda: self._adapters.load(str(self.bundle.path / adapter_file(name)), name))
        self._loaded.add(name)

    def _generator(self, *, max_length: int, search: dict[str, Any]) -> Any:
        og = import_genai()
        params = og.GeneratorParams(self._model)
        # The cache is allocated for max_length at once, so it is this answer's length, not the context's. The rest
        # switches off what a genai_config.json may ask for on top of temperature and top_p.
        fixed = {"min_length": 0, "num_beams": 1, "top_k": 0, "repetition_penalty": 1.0}
        params.set_search_options(max_length=max_length, **{**fixed, **search})
        generator = og.Generator(self._model, params)
        if self.bundle.adapter is not None:
            generator.set_active_adapter(self._adapters, self.bundle.adapter)
        return generator


def check_settings(*, max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raises PromptError for the first setting of `Decoder.generate` that is out of range."""
    for name, value, is_good, wanted in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (always the likeliest token) or above"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("seed", seed, 0 <= seed < 2**31, "from 0 to 2147483647"),
    ):
        if not is_good:
            raise PromptError(f"{name} is {value}, must be {wanted}")
