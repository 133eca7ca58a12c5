"""How many eval rows a training looks at between its steps, so that evaluations take a small share of its time.

Where the eval rows are many beside what is trained on, evaluations on all of them would take longer than the training.
Then the same part of them serves each time, and the last evaluation is on all.
"""

from __future__ import annotations

import numpy as np

EVAL_SHARE = 0.15
"""Of the time of the training's steps, for all evaluations together."""
FORWARD = 1 / 3
"""What a token costs that is evaluated, beside one that is trained on, which goes back through the layers too."""
LEAST_ROWS = 64
"""Fewer would tell little: where even these take longer, they take longer."""


def sampled_places(lengths: np.ndarray, *, trained_tokens: float, evaluations: int) -> list[int] | None:
    """The places of the eval rows of an evaluation, at even distances; None where all of them can be looked at.

    lengths (rows,): tokens of each eval row; `trained_tokens` those of the whole training, a token of the second epoch
    counted again; `evaluations` before the last one, which is of all rows.
    """
    whole = int(lengths.sum())
    room = EVAL_SHARE / FORWARD * trained_tokens - whole
    if room >= evaluations * whole:
        return None
    count = max(LEAST_ROWS, int(len(lengths) * room / (evaluations * whole)))
    if count >= len(lengths):
        return None
    return [place * len(lengths) // count for place in range(count)]
