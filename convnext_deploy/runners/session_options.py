"""Set up inference sessions on a CPU: every option that decides speed or precision."""

from typing import Literal

CPUPrecision = Literal["artifact", "fp32", "bf16"]
Properties = dict[str, str | int]

PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-openvino": "OpenVINOExecutionProvider",
}
"""Runner → ONNX Runtime's execution provider."""

OPENVINO_PRECISIONS: dict[str, CPUPrecision] = {
    "openvino": "artifact",
    "openvino-fp32": "fp32",
    "openvino-bf16": "bf16",
}
"""Runner → in which type OpenVINO computes what is not INT8."""


def onnxruntime_entries(precision: str, *, alone: bool) -> dict[str, str]:
    """Return the entries of ONNX Runtime's session configuration.

    Args:
        precision: of the artifact, such as `fp32` or `fp8-fp16`.
        alone: nothing else runs in this process. Otherwise threads do not spin while they wait, because spinning ones take the
            cores from whatever runs next, such as the session of another artifact.
    """
    entries = {"session.intra_op.allow_spinning": "1" if alone else "0"}
    if precision.startswith("fp8"):
        # Before 1.32 it moves FP8 values through a Transpose, which takes none, and then refuses the file. There are no FP8 kernels
        # of its own that it would find by this.
        entries["session.disable_quant_qdq"] = "1"
    return entries


def provider_options(runner: str, precision: str, threads: int | None) -> dict[str, str]:
    """Return the options of an execution provider, for an artifact of this precision."""
    if runner != "onnxruntime-openvino":
        return {}
    properties = openvino_properties("artifact", precision, threads)
    hint = {"f32": "FP32", "bf16": "BF16"}.get(str(properties.get("INFERENCE_PRECISION_HINT")))
    options = {"device_type": "CPU"}
    if hint is not None:
        options["precision"] = hint
    if threads is not None:
        options["num_of_threads"] = str(threads)
    return options


def openvino_properties(computed: CPUPrecision, precision: str, threads: int | None) -> Properties:
    """Return the properties with which OpenVINO compiles a model.

    On CPUs that have bf16 units OpenVINO computes everything that is not INT8 in bf16 unless told otherwise. A float artifact
    would then lose accuracy that its manifest claims, so FP32 and FP16 artifacts are computed in FP32. INT8 artifacts are
    computed as OpenVINO does by default, because that is what a user who loads the file gets, and rounding to INT8 is coarser.

    Args:
        computed: `artifact` for the rule above; `fp32` or `bf16` to choose.
        precision: of the artifact, such as `fp32` or `int8-fp16`.
        threads: None: as many as there are cores.
    """
    properties: Properties = {"PERFORMANCE_HINT": "LATENCY"}
    if computed == "bf16":
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    elif computed == "fp32" or not precision.startswith("int8"):
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties
