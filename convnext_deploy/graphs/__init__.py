"""ONNX files and engine plans of any origin, read and described."""
