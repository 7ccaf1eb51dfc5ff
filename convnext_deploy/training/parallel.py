"""The network as several processes call it together."""

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convnext_deploy.system.distributed import world


def shared(model: nn.Module) -> nn.Module:
    """Return the network as it is to be called, so that gradients are averaged over the processes while they are computed."""
    if world().size == 1:
        return model
    device = next(model.parameters()).device
    # depthwise weights have a dimension of 1, whose stride autograd and DDP write differently; it costs a small copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    # all processes begin with the same buffers, and keep them; the constructor's word for it is another from release to release
    parallel.broadcast_buffers = False
    return parallel


def keeping_gradients(network: nn.Module) -> AbstractContextManager[None]:
    """Leave the gradients of a part of a batch where they are until those of the last part are there too."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
