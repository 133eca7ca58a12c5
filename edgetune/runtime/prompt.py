"""Text to token ids and back, torch-free: the bundle's chat template, its tokenizer, and text while it is generated.

Export and evaluation use the same functions, so a prompt on the device is the prompt that was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from edgetune.errors import PromptError
from edgetune.runtime.bundle import Bundle
from edgetune.runtime.session import check_text, genai_config, import_genai, load_error, load_tokenizer, tokenizing

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

REPLACEMENT = "\ufffd"  # what tokenizers writes for bytes that are no character (yet)


class Prompter:
    """Renders and encodes prompts as the bundle's training did."""

    def __init__(self, bundle: Bundle) -> None:
        """Reads tokenizer.json. Raises BundleError if it is damaged, or if the bundle is a classifier."""
        self.bundle = bundle
        self._chat = bundle.chat_format
        self.tokenizer = load_tokenizer(bundle)
        self._renderer: Any = None
        self._template = for_minja(self._chat.template) if self._chat.template else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the bundle's chat template, with its default system message.

        Rendered by minja inside onnxruntime-genai. Raises PromptError if there is no template, no message, or the
        template refuses the messages; MissingExtraError without onnxruntime-genai.
        """
        if self._template is None:
            raise PromptError(f"{self.bundle.path}: has no chat template", cure="give it plain text: --raw")
        messages = self._checked(messages)
        stand_in = _unused_character("".join(message["content"] for message in messages))
        plain = [{**message, "content": message["content"].replace("\0", stand_in)} for message in messages]
        renderer = self._load_renderer()
        try:
            rendered = renderer.apply_chat_template(
                json.dumps(plain, ensure_ascii=False),
                template_str=self._names() + self._template,
                add_generation_prompt=add_generation_prompt,
            )
            return str(rendered).replace(stand_in, "\0")
        except Exception as error:  # the library raises its own type for whatever a template does
            reason = str(error).split(" at row ")[0].splitlines()[0]
            raise PromptError(f"{self.bundle.path}: the chat template refuses these messages: {reason}") from None

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the answer starts. Raises PromptError."""
        return self._encode(self.render(messages))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text taken as it is: bos where training put it, no template. Raises PromptError if empty."""
        check_text(text)
        if not text:
            raise PromptError("the prompt is empty")
        bos_id = self._chat.bos_id
        return ([] if bos_id is None else [bos_id]) + self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _encode(self, text: str) -> list[int]:
        with tokenizing(self.bundle):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _checked(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """The messages as plain dicts, led by the default system message. Raises PromptError."""
        if not messages:
            raise PromptError("the conversation is empty")
        checked = [{"role": message["role"], "content": message["content"]} for message in messages]
        for message in checked:
            check_text(message["content"])
        if checked[-1]["role"] == "user" and not checked[-1]["content"].strip():
            raise PromptError("the prompt is empty")
        if self._chat.system is not None and checked[0]["role"] != "system":
            checked.insert(0, {"role": "system", "content": self._chat.system})
        return checked

    def _names(self) -> str:
        """Template code that defines bos_token and eos_token, so that edgetune.json alone says what they are."""
        names = {"bos_token": self._chat.bos_token or "", "eos_token": self._chat.eos_token or ""}
        return "".join(f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in names.items())

    def _load_renderer(self) -> Any:
        """onnxruntime-genai's tokenizer, made on first use: only its template engine is used."""
        if self._renderer is None:
            og = import_genai()
            config = genai_config(self.bundle)
            try:
                self._renderer = og.Tokenizer(config)
            except Exception as error:
                raise load_error(self.bundle, error) from None
        return self._renderer


class TextStream:
    """Text while its tokens arrive: a piece is given out only when its characters are whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: one piece back, since a piece's text can depend on the one before
        self._done = 0  # ids up to here were given out

    def push(self, token_id: int) -> str:
        """The text that became whole with this token; "" while a character is incomplete."""
        self._ids.append(token_id)
        return self._take(is_last=False)

    def flush(self) -> str:
        """What is left at the end, incomplete bytes as U+FFFD."""
        return self._take(is_last=True)

    def _take(self, *, is_last: bool) -> str:
        before = self._decode(self._ids[self._start : self._done])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(REPLACEMENT) and not is_last):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


_TEMPLATE_PARTS = re.compile(
    r"""
    (?P<output>\{\{(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.)*?\}\})  # quoted braces do not end it
    | (?P<comment>(?:^[ \t]+)?\{\#.*?\#\}\n?)
    | (?P<indent>^[ \t]+)?                                         # nothing but spaces before the tag on its line
      \{%(?P<keep_indent>\+?)
      (?P<body>(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.)*?)
      (?P<keep_newline>\+?)%\}
      (?P<newline>\n?)
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_SUBSTRING = re.compile(
    r"""(?P<part>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s+(?P<negated>not\s+)?in\s+
        (?P<whole>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[(?:-?\d+|'[^']*'|"[^"]*")\]|\([^()]*\))*)(?![\w.(\[])""",
    re.VERBOSE,
)


def for_minja(template: str) -> str:
    """The template written so that minja renders from it what transformers' Jinja renders from the original.

    * transformers switches trim_blocks and lstrip_blocks on (Jinja documentation, "Whitespace Control"), minja has them
      off: the newline after a block tag and the spaces before one on its line go, unless a plus in the tag keeps them.
    * In minja, `'a' in 'abc'` is False without a word: strings are split instead.
    """

    def rewritten(part: re.Match[str]) -> str:
        if part["output"]:
            return _with_substring_tests(part["output"])
        if part["comment"]:
            return ""
        indent = (part["indent"] or "") if part["keep_indent"] else ""
        newline = part["newline"] if part["keep_newline"] else ""
        return f"{indent}{{%{_with_substring_tests(part['body'])}%}}{newline}"

    return _TEMPLATE_PARTS.sub(rewritten, template)


def _unused_character(text: str) -> str:
    """A character to stand in for NUL, at which the library would cut the text off without a word."""
    return next(character for character in map(chr, range(0xE000, 0xF8FF)) if character not in text)


def _with_substring_tests(code: str) -> str:
    def rewritten(test: re.Match[str]) -> str:
        part, whole = test["part"], test["whole"]
        found = (
            f"(({whole} is string and ({whole}.split({part}) | length) > 1)"
            f" or ({whole} is not string and {part} in {whole}))"
        )
        return f"(not {found})" if test["negated"] else found

    return _SUBSTRING.sub(rewritten, code)
