"""Predictions in any floating type of 16 bits and more are read; what has another meaning than numbers is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convnext_deploy.errors import CheckpointError
from convnext_deploy.training.prediction_files import read_predictions

NAMES = ("cat/0.png", "dog/0.png")
LOGITS = torch.tensor([[4.0, -2.0, -1.0], [0.5, 2.0, -3.0]])  # which bfloat16 and int8 hold as they are, but for 0.5
FORMS = pytest.mark.parametrize("form", ["a matrix with files", "a tensor for each image"])


def write(folder: Path, form: str, values: torch.Tensor) -> Path:
    path = folder / "t.safetensors"
    if form == "a matrix with files":
        save_file({"logits": values}, path, metadata={"files": json.dumps(NAMES)})
    else:
        save_file({name: row.clone() for name, row in zip(NAMES, values, strict=True)}, path)
    return path


@FORMS
@pytest.mark.parametrize(
    "kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64]
)
def test_numbers_are_read_from_each_type(form: str, kind: torch.dtype, tmp_path: Path) -> None:
    values = LOGITS.abs().to(kind) if kind == torch.uint8 else LOGITS.to(kind)
    found = read_predictions(write(tmp_path, form, values))
    assert torch.equal(torch.from_numpy(found.vectors), values.float())


@pytest.mark.heavy
def test_bfloat16_is_read_where_nothing_else_was_imported(tmp_path: Path) -> None:
    """NumPy knows the type only once a package has told it."""
    path = write(tmp_path, "a matrix with files", LOGITS.bfloat16())
    code = (
        "import sys; from pathlib import Path; from convnext_deploy.training.prediction_files import read_predictions; "
        "print(read_predictions(Path(sys.argv[1])).vectors.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(LOGITS.tolist()), done.stderr


@FORMS
@pytest.mark.parametrize(
    ("kind", "stored"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"), (torch.complex64, "C64"), (torch.bool, "BOOL")],
)
def test_other_types_are_refused_by_name(form: str, kind: torch.dtype, stored: str, tmp_path: Path) -> None:
    key = "logits" if form == "a matrix with files" else "cat/0.png"
    with pytest.raises(
        CheckpointError, match=rf"holds '{key}' as {stored}, which is not read; expected floating"
    ) as caught:
        read_predictions(write(tmp_path, form, LOGITS.to(kind)))
    assert "\n" not in str(caught.value)


@FORMS
def test_numbers_too_large_for_float32_are_not_finite(form: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has a number that is not finite for 'cat/0\.png'"):
        read_predictions(write(tmp_path, form, LOGITS.double() * 1e300))
