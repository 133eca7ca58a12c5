"""What a bench is asked to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.progress import Progress

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes one measurement of a target in a process of its own; a request says "measure", one of child.MEASURES."""
Measure = Callable[[Mapping[str, Any], Progress], dict[str, Any]]
"""Makes it there: the numbers of a request."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    threads: int
    repeats: int = 3
    """Fresh processes for each speed and each peak of memory."""
    passes: int = 5
    """Samples in each process, after a warm-up."""
    prompts: tuple[int, ...] = (32, 128, 512)
    """Tokens before a first token that is timed."""
    decode_prompt: int = 128
    decode_new: int = 128
    """Tokens that are decoded after decode_prompt ones."""
    contexts: tuple[int, ...] = (512, 2048)
    """Tokens of a full context whose memory is measured."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, and how it is asked."""

    name: str
    tasks_from: str | None = None
    """A folder with task files of the user's own; None: those that come with lm-eval."""
    limit: int | None = None
    """Rows at most, the first ones."""
    shots: int | None = None
    """Examples before each question; None: as the task says."""
    is_chat: bool = False
    """Whether prompts go through the target's chat template."""
