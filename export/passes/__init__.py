"""Passes: one step each from an ONNX graph to a smaller or faster one. A new one is one file and one line."""
