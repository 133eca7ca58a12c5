"""How OpenMP's threads wait for one another: a moment awake, then asleep, so that they leave a busy core to others.

In the flow: `import edgetune` calls `wait_politely` before anything can load torch, whose OpenMP reads the environment
once, when it is loaded. Processes that this one starts inherit the settings.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SETTINGS = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
"""GNU's OpenMP, in torch for Linux: turns of a waiting loop, of the order of 0.1 ms. LLVM's and Intel's, in torch for
macOS and Windows: milliseconds. As torch comes the first spins for minutes and the second for 200 ms, which slows
small operators down on a core that another process wants; see benchmarks/README.md, "Beside other work"."""
CHOICES = (*SETTINGS, "OMP_WAIT_POLICY")
"""Variables by which a user says how threads wait."""


def wait_politely(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Set a short spin unless the environment chooses a way to wait; whether it was set.

    It has no effect on a process that has already loaded torch: import edgetune first, or set GOMP_SPINCOUNT before
    Python starts.
    """
    if any(name in environment for name in CHOICES):
        return False
    environment.update(SETTINGS)
    return True
