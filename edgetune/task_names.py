"""The tasks, by name. Apart from recipe and runtime, which both have a row for each."""

from __future__ import annotations

from typing import Literal

TaskName = Literal["generation", "classification"]
