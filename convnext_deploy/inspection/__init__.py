"""What is in ONNX files and engines: products, types, quantization, and the traps that ConvNeXt is known to fall into."""
