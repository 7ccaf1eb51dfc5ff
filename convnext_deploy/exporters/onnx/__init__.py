"""From a network to an ONNX file: float, FP16, Q/DQ, and the rewrites for each runtime."""
