"""Tables fit into terminals of any width: cells of several lines, then several tables; no word or interval is broken."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.cells import cell_len
from rich.console import Console

from convnext_deploy.cli.fitting import fit, lay_out, width_in_lines
from convnext_deploy.cli.tables import create_console, print_table

TITLES = ("stage", "artifact", "drop pp [95 %]", "p50\nms", "verdict")
ROWS = [
    ("source", "convnextv2_tiny torch fp32", "baseline", "12.50", "no gate"),
    ("float-onnxruntime", "convnextv2_tiny onnx int8-fp16", "-0.17 [-0.91, +0.54]", "8.14", "passed, unproven"),
]
WORDS = ("stage", "artifact", "verdict")


def draw(width: int, titles: tuple[str, ...] = TITLES, rows: Sequence[tuple[str, ...]] = ROWS) -> list[str]:
    out = io.StringIO()
    print_table(Console(width=width, file=out, highlight=False), titles, rows, WORDS, first=("verdict",))
    return out.getvalue().splitlines()


def test_every_table_tells_rows_apart_that_begin_alike() -> None:
    titles = ("artifact", "runner", "batch", "p50 ms", "p99 ms", "images per s", "of the first's time [95 %]")
    rows = [
        ("student.onnx", runner, batch, "12.50", "13.25", "1,024", "0.81 [0.63, 2.05]")
        for runner in ("onnxruntime", "openvino")
        for batch in ("1", "16")
    ]
    words, names, first = ("artifact", "runner"), ("batch", "runner"), ("p50 ms",)
    for width in range(44, 100, 3):
        tables = fit(titles, rows, words, width, first, names)
        for table in tables:
            assert sum(table.widths.values()) + table.gap * (len(table.widths) - 1) <= width
            if len(tables) > 1:  # of one runner "batch" alone tells all apart; of two, both do, where there is room
                assert list(table.widths)[:2] == [0, 2]
                assert width < 60 or list(table.widths)[:3] == [0, 2, 1]
        places = [place for table in tables for place in table.widths]
        assert {*places} == {*range(7)}
        assert len([place for place in places if place > 2]) == 4
        # rows that differ in the first column need nothing besides
        others = fit(
            titles, [(f"{place}.onnx", *row[1:]) for place, row in enumerate(rows)], words, width, first, names
        )
        assert len([place for table in others for place in table.widths if place == 2]) == 1


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("passed, unproven", 16, ["passed, unproven"]),
        ("passed, unproven", 15, ["passed,", "unproven"]),
        ("-0.17 [-0.91, +0.54]", 19, ["-0.17", "[-0.91, +0.54]"]),
        ("0.81× [0.63, 2.05] at 8", 14, ["0.81×", "[0.63, 2.05]", "at 8"]),
        ("float-onnxruntime", 10, ["float-onnx", "runtime"]),
        ("p50\nms", 20, ["p50", "ms"]),
        ("猫猫 dog", 4, ["猫猫", "dog"]),
        ("", 5, [""]),
        ("a  name", 8, ["a  name"]),
        ("[red]small.onnx", 15, ["[red]small.onnx"]),
        ("[half open", 5, ["[half", "open"]),
    ],
)
def test_text_is_laid_out_in_lines(text: str, width: int, lines: list[str]) -> None:
    assert lay_out(text, width) == lines
    assert max(map(cell_len, lines)) <= width


def test_least_width_breaks_nothing() -> None:
    assert [width_in_lines("a drop of -0.17 [-0.91, +0.54]", count) for count in (1, 2, 3)] == [30, 15, 14]
    assert width_in_lines("passed", 2) == 6


@pytest.mark.parametrize("width", range(44, 131, 3))
def test_every_word_and_interval_of_a_table_is_whole_at_any_width(width: int) -> None:
    lines = draw(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in ROWS:
        for chunk in ("[-0.91, +0.54]", *" ".join(row).replace(" [-0.91, +0.54]", "").split()):
            assert chunk in text
    assert text.count("float-onnxruntime") == len(fit(TITLES, ROWS, WORDS, width, ("verdict",)))


def test_columns_that_matter_come_first_where_there_are_several_tables() -> None:
    first, *others = fit(TITLES, ROWS, WORDS, 44, ("verdict", "drop pp [95 %]"))
    assert list(first.widths) == [0, 4, 2]
    assert {place for table in others for place in table.widths} == {0, 1, 3}


def test_wide_terminal_has_one_table_with_a_line_for_each_row() -> None:
    assert len(draw(160)) == 2 + 1 + len(ROWS)  # titles of two lines, as one asks for it


@pytest.mark.parametrize("width", [20, 72])
def test_name_without_a_space_that_is_wider_than_the_terminal_is_folded(width: int) -> None:
    lines = draw(width, ("stage", "verdict"), [("x" * 100, "passed")])
    assert max(map(len, lines)) <= width
    assert "".join(lines).count("x") == 100


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_break_between_words_on_a_terminal_and_nowhere_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    monkeypatch.setattr("convnext_deploy.cli.tables.FILE_WIDTH", 80)
    text = "onnx is INT8 and not faster than float-onnxruntime on onnxruntime (fp32) at batch 1: 1.06 of its time"
    create_console().print(text, soft_wrap=True)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(line.strip() for line in lines) == text
    assert len(lines) == (2 if terminal else 1)
