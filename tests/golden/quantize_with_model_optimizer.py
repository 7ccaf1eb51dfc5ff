"""Write the golden ONNX file that NVIDIA's Model Optimizer quantized; see README.md beside this file."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from tests.graphs.others_graphs import SIDE, export_new, timm_model


def main(out: Path) -> None:
    """Export a very small timm ConvNeXt V2, and quantize it with Model Optimizer's defaults: INT8 with the rest in FP16."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]  # not a dependency, see README.md

    with tempfile.TemporaryDirectory() as folder:
        path = export_new(timm_model(depths=(1, 0, 0, 0), dims=(16, 16, 16, 16)), Path(folder) / "model.onnx")
        graph = onnx.load(path)
        for node in graph.graph.node:
            del node.metadata_props[:]  # they hold the paths of the machine
        for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
            del value.metadata_props[:]
        del graph.graph.metadata_props[:], graph.metadata_props[:]
        onnx.save(graph, path)
        images = np.random.default_rng(0).normal(0, 1, (2, 3, SIDE, SIDE)).astype(np.float32)
        quantize(str(path), "int8", {"images": images}, calibration_eps=["cpu"], output_path=str(out))
    quantized = onnx.load(out)
    del quantized.graph.value_info[:]  # a third of the file, and inferred by whoever needs it
    onnx.save(quantized, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
