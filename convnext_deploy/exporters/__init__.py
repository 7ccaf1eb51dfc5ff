"""Writers of ONNX files, TensorRT engines and Torch-TensorRT programs."""
