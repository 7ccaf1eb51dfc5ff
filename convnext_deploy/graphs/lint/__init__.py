"""The rules that `inspect` checks an ONNX file against, each with its cost and its fix."""
