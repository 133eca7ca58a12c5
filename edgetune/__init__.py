"""EdgeTune: fine-tune LoRA adapters on 4-bit bases, carry them to int4 ONNX, and prove that nothing was lost."""

__version__ = "0.1.0"
