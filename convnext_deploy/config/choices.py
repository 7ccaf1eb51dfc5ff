"""Every choice that is made by name: recipes, arguments of the Python functions and command-line options take these.

`typing.get_args(Target)` are the names in the order in which they are shown.
"""

from typing import Literal

Target = Literal["tensorrt", "tensorrt-depthwise", "tensorrt-fp8", "onnxruntime", "openvino"]
"""What a quantized network is for; a key of `quantization.scheme.SCHEMES`."""
TargetOrAuto = Literal[Target, "auto"]
"""A target, or those that a GPU has the choice among."""
QuantizeMethod = Literal["auto", "ptq", "qat"]
"""How far `quantize` goes: `ptq` ends before training, `qat` trains at once, `auto` trains if nothing else is good enough."""
CalibrationMethod = Literal["auto", "minmax", "moving_average", "percentile", "mse", "entropy"]
"""How the range of an activation is chosen; `auto`: tensor by tensor, by the error at the layer's output."""
LogitMethod = Literal["kd", "teacher-only", "hard-label", "dkd", "dist"]
"""What a student follows of a teacher's logits."""
DistillMethod = Literal[LogitMethod, "feature"]
"""What a student follows of a teacher: its logits, or (`feature`) its features too."""
ExportFormat = Literal["onnx", "tensorrt-rtx", "tensorrt", "torch-tensorrt"]
Flavor = Literal["tensorrt-rtx", "tensorrt"]
"""Which of NVIDIA's two packages builds an engine."""
Precision = Literal["fp32", "fp16"]
"""Of everything that is not INT8 or FP8."""
Runtime = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
"""What a float graph is written for."""
InputType = Literal["float32", "uint8", "float32-0-1", "float32-0-255"]
"""What a graph takes: normalized images, pixels as decoders give them, or these as floats with white at 1 or at 255."""
InputRange = Literal["normalized", "0-1", "0-255"]
"""Of the values that a graph of another origin takes: normalized by mean and std, or pixels, which it normalizes itself."""
InputLayout = Literal["nchw", "nhwc"]
NetworkOutput = Literal["logits", "features", "feature-map"]
"""What a network gives: scores of classes, or without a head what these would be made of, pooled or the map before the pooling."""
FeatureOutput = Literal["features", "feature-map"]
GraphOutput = Literal["logits", "probabilities", "top-k", "features", "feature-map"]
GateOn = Literal["point", "upper"]
"""Which drop a gate judges: the one measured, or the upper end of its 95 % interval."""
Autocast = Literal["auto", "off", "bf16", "fp16"]
AugmentationPolicy = Literal["none", "randaugment", "autoaugment", "trivialaugment"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
"""In blocks and stem."""
HeadActivation = Literal["gelu", "relu"]
PruneMethod = Literal["second-order", "taylor"]
"""Which hidden units go first: those whose loss the others make up for best, or those with the smallest first-order effect."""
Interpolation = Literal["bicubic", "bilinear", "lanczos", "hamming", "box", "nearest"]
"""How images are resized for evaluation, by Pillow's filters; all but `nearest` weigh every pixel that they leave out."""
CropMode = Literal["center", "squash"]
"""Which sides are resized before the centre is cut out: the shorter one, or both."""
Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where PyTorch computes; `mps` is the GPU of a Mac, and `auto` does not take it."""
BundledKind = Literal["onnx", "engine"]
"""Of the models in a bundle, those that can be run."""
MetricName = Literal["top-1", "kNN top-1", "mAP"]
"""What an artifact is scored by, see `evaluation.metric`."""
Dialect = Literal["timm", "torchvision", "facebook", "huggingface"]
"""Whose names of weights a checkpoint has."""
CHANGE_LIMITS = {
    "max_top1_drop_pp": "--max-drop",
    "max_ece_increase_pp": "--max-ece-increase",
    "max_class_drop_pp": "--max-class-drop",
}
"""What a gate says of a comparison with the baseline → its flag on the command line."""
