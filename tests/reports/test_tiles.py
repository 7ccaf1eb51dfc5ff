"""The figures of a report's first screen, by hand."""

from __future__ import annotations

from convnext_deploy.reports.html.tiles import create_tiles
from convnext_deploy.reports.record import Layer
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, PASSED_ROW, SPEED, change, create_report

FLOAT = change(BASELINE_ROW, format="onnx", runner="onnxruntime", p50_ms=4.0, size_bytes=12_000_000)
FAST = change(PASSED_ROW, p50_ms=1.0, size_bytes=3_000_000)


def test_tiles_compare_int8_with_the_same_network_in_float() -> None:
    failed = change(INT8_ROW, p50_ms=0.1, size_bytes=1)  # a failed gate is no result to show
    assert [(tile.value, tile.note) for tile in create_tiles(create_report(FLOAT, FAST, failed))] == [
        ("1.00 ms", "ptq, 4.00× as fast as student"),
        ("3.0 MB", "ptq, 0.25× the size of student"),
        ("96.48 %", "student, 521 of 540"),
        ("+0.37 pp", "ptq, 95 % interval -0.50 to +1.23"),
    ]


def test_tile_has_the_speedup_that_was_measured_where_there_is_one() -> None:
    tiles = create_tiles(create_report(FLOAT, change(FAST, against_float=SPEED)))
    assert tiles[0].note == "ptq, 0.50× as fast as student-float-onnxruntime"


def test_what_was_brought_and_what_is_simulated_are_neither_fastest_nor_smallest() -> None:
    layers = (Layer("stages.0.0.pwconv1", "int8", 300), Layer("head", "float", 100))
    source = change(BASELINE_ROW, name="source", kind="source")
    quantized = change(PASSED_ROW, name="quantize", format="torch", layers=layers, p50_ms=9.0, size_bytes=14_000_000)
    assert [(tile.title, tile.value, tile.note) for tile in create_tiles(create_report(source, quantized))] == [
        ("Best top-1", "96.48 %", "source, 521 of 540"),
        ("Largest drop of INT8", "+0.37 pp", "quantize, 95 % interval -0.50 to +1.23"),
        ("Weights in INT8", "75.0 %", "quantize, 1 of 2 layers"),
    ]
