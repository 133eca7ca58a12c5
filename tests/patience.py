"""How long a test waits for what must happen: far longer than any machine needs, so that only a hang ends it."""

LONG_S = 600
