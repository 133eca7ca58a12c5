"""ONNX graphs: of decoders and encoders, our bytes in them, an adapter as inputs; and read back."""
