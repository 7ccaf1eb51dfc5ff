"""Objects on their way from one process to another."""

import io
import pickle
from typing import Any

MOST_KEPT = 4
Memory = dict[bytes, Any]
"""What came before, by the bytes that it came as."""


class Kept:
    """What a process keeps while it waits for the first one: sent again, it is the very object that came before.

    So it has what it has learned since, such as decoded images. What is pickled of it must be small and always the same.
    """


def pack(value: Any) -> bytes:
    """Pickle a value, its tensors without their device: each process has a GPU of its own, and would open that of the sender."""
    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> bytes | None:
            return pack(part) if isinstance(part, Kept) and part is not value else None

        def reducer_override(self, part: Any) -> Any:
            if not isinstance(part, torch.Tensor) or part.device.type == "cpu":
                return NotImplemented
            is_parameter = isinstance(part, torch.nn.Parameter)
            return _on_own_device, (part.detach().cpu(), part.device.type, part.requires_grad, is_parameter)

    with io.BytesIO() as file:
        Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()


def unpack(packed: bytes, memory: Memory | None = None) -> Any:
    """Return what was packed, its tensors on this process's own device of the sender's kind.

    `memory`: of what is `Kept`, to which is added what came now; it holds the last few. None: nothing came before.
    """
    known = {} if memory is None else memory

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, part: bytes) -> Any:
            known[part] = known.pop(part) if part in known else unpack(part)
            while len(known) > MOST_KEPT:
                known.pop(next(iter(known)))
            return known[part]

    with io.BytesIO(packed) as file:
        return Unpickler(file).load()


def _on_own_device(tensor: Any, kind: str, requires_grad: bool, is_parameter: bool) -> Any:
    import torch

    found = tensor.to(kind)
    return torch.nn.Parameter(found, requires_grad) if is_parameter else found.requires_grad_(requires_grad)
