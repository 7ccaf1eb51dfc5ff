"""TensorRT and TensorRT-RTX engines, and Torch-TensorRT programs."""
