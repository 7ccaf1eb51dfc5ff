"""A tensor of a safetensors file as float32 numbers, whichever program wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # with it NumPy knows the name bfloat16, which safetensors asks it for
import numpy as np
from numpy.typing import NDArray

from convnext_deploy.errors import CheckpointError

_WHOLE = frozenset({"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})  # votes, or scores that were rounded
_READ = frozenset({"F64", "F32", "F16", "BF16"}) | _WHOLE


def read_numbers(file: Any, key: str, path: Path) -> NDArray[np.float32]:
    """Read a tensor.

    Args:
        file: open, see `safetensors.safe_open`.
        key: of the tensor.
        path: of the file, for messages.

    Raises: CheckpointError: if it holds truth values, complex numbers, or floating ones of less than 16 bits.
    """
    stored = str(file.get_slice(key).get_dtype())
    if stored not in _READ:
        raise CheckpointError(
            f"{path} holds {key!r} as {stored}, which is not read; expected floating numbers of 16, 32 or 64 bits (F16, BF16, F32, "
            "F64)."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
        found: NDArray[np.float32] = file.get_tensor(key).astype(np.float32)
    return found
