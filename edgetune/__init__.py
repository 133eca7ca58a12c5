"""EdgeTune: fine-tune LoRA adapters on 4-bit bases, carry them to int4 ONNX, and prove that nothing was lost.

Importing the package sets how OpenMP's threads wait (edgetune/threads.py), and does nothing else.
"""

from edgetune.threads import wait_politely

__version__ = "0.1.0"

wait_politely()
