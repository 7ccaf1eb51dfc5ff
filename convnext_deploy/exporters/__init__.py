"""ONNX files and TensorRT engines."""
