"""A frozen model whose weights lie in shards, one on each of several processes, while an adapter on it learns.

Fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277), as torch's `fully_shard` does it: each process
holds 1 / N of every weight, a layer is gathered just before it computes and let go after. Adapters are no part of that:
every process holds them whole, computes the gradient of its share of a batch's rows, and takes the same step with the
sum. torch's own and not Accelerate's, which wraps the same function together with an optimizer and a loop of its own.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tamperdose.errors import ModelError, explain
from tamperdose.models.workers import Ranks


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Leave each process its share of a model's frozen weights; what learns, and buffers, every process holds whole.

    The first process brings the model with its weights, the others the same without (on the device `meta`). Weights go
    from there layer by layer, so that a device holds its share and one layer at most, and main memory one model.

    Raises:
        ModelError: The model has no layers that can be gathered one by one, or processes have different models.
    """
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            explain(
                "this model cannot be sharded",
                got="no layers that transformers knows how to compute one by one",
                remedy="fsdp: 1",
            )
        )
    mesh = init_device_mesh(ranks.device.split(":")[0], (ranks.n_ranks,))
    kinds = _agreed(model, ranks)
    sent: set[nn.Module] = set()
    for part in [*layers, model]:
        _send([each for each in part.modules() if each not in sent], kinds, ranks)
        sent.update(part.modules())
        learning = {each for each in part.parameters() if each.requires_grad}
        fully_shard(part, mesh=mesh, ignored_params=learning)


def shard_bytes(model: nn.Module) -> int:
    """Bytes of the shards of a model's weights that lie in this process."""
    return sum(each.to_local().nbytes for each in model.parameters() if isinstance(each, DTensor))


def _slots(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for owner in modules:
        for name, tensor in [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]:
            yield owner, name, tensor


def _agreed(model: nn.Module, ranks: Ranks) -> dict[tuple[nn.Module, str], torch.dtype]:
    """The dtype of each tensor as the first process has it: some models keep parts in another than they are given."""
    names = {owner: name for name, owner in model.named_modules()}
    slots = list(_slots(list(model.modules())))
    own = [(f"{names[owner]}.{name}", tuple(tensor.shape), tensor.dtype) for owner, name, tensor in slots]
    told = [own]
    dist.broadcast_object_list(told, src=0, device=torch.device(ranks.device))
    if [each[:2] for each in told[0]] != [each[:2] for each in own]:
        raise ModelError(explain("processes that share a training have different models", expected="one model"))
    kinds = zip(slots, told[0], strict=True)
    return {(owner, name): dtype for (owner, name, _), (_, _, dtype) in kinds}


def _send(modules: Sequence[nn.Module], kinds: dict[tuple[nn.Module, str], torch.dtype], ranks: Ranks) -> None:
    """Put the first process's tensors into the modules of every process, on its device; tied ones stay tied."""
    placed: dict[torch.Tensor, torch.Tensor] = {}
    for owner, name, tensor in list(_slots(modules)):
        if tensor not in placed:
            placed[tensor] = _received(tensor, kinds[owner, name], ranks)
        setattr(owner, name, placed[tensor])


def _received(tensor: torch.Tensor, dtype: torch.dtype, ranks: Ranks) -> torch.Tensor:
    if ranks.is_first:
        whole = tensor.detach().to(ranks.device).contiguous()
    else:
        whole = torch.empty(tensor.shape, dtype=dtype, device=ranks.device)
    dist.broadcast(whole, src=0)
    return nn.Parameter(whole, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole
