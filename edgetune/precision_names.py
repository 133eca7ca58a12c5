"""The precisions and block sizes of [export], by name. Apart from the recipe, so that the command line starts without
it."""

from __future__ import annotations

from typing import Literal

PrecisionName = Literal["int4", "int2", "int8", "fp16", "fp32"]
BlockSize = Literal[16, 32, 64, 128, 256]
