"""One loaded base for many trainings: whatever a training hangs on it is taken off again.

In the flow: loaded base -> lent to a training, which attaches its adapter -> the base as it was -> the next training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def lent(base: Any) -> Iterator[Any]:
    """A loaded base inside the block; afterwards its modules, hooks and settings are those that it had before.

    Adapters, replaced embeddings, checkpointing, an attention of another kind: all that hangs on modules goes. Weights
    are not copied; a training leaves them as they are, for they are frozen.
    """
    parts = {module: _copied(vars(module)) for module in base.modules()}
    settings = dict(vars(base.config))
    frozen = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    try:
        yield base
    finally:
        for module, values in parts.items():
            vars(module).clear()
            vars(module).update(values)
        vars(base.config).clear()
        vars(base.config).update(settings)
        for parameter, is_trained in frozen:
            parameter.requires_grad_(is_trained)
            parameter.grad = None


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """A module's attributes; the tables in which torch keeps children, tensors and hooks are copied too."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in values.items()}
