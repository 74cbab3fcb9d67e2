"""Share out a frozen base among the processes of torchrun. Use `shard_base` and `Turns`.

Each process keeps a part of every frozen weight. A layer is gathered when it is needed and let go
after it (FSDP, Zhao et al. 2023; torch's `fully_shard`). What is trained is small beside it, and
every process has all of it, so that optimizer, checkpoints and saved runs are as without.

To gather a layer takes all processes, so they have to run equally many passes. `Turns` sees to that
where their rows make different numbers: who has finished runs a pass that counts for nothing, until
all have.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from kit.errors import RecipeError
from kit.model.pair_model import PairModel


def shard_base(model: PairModel, device: torch.device) -> None:
    """Share out the frozen weights of a model among all processes; with one, do nothing.

    Call it in all processes at once, with equal weights and before the model is on its device: a
    part at a time gets there, so that a GPU never holds the whole base.

    Raises:
        RecipeError: the encoder has no list of layers that kit knows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    encoder = model.encoder
    layers = getattr(encoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise RecipeError(
            f"train.shard = true, and kit does not know the layers of {type(encoder).__name__}",
            "Set train.shard=false.",
        )

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {parameter for parameter in encoder.parameters() if parameter.requires_grad}

    # The embeddings by themselves: nothing is computed with them in a backward pass. By default the
    # outermost weights would stay gathered after a pass, until the process that saves a checkpoint
    # lets go of them, alone; then the processes would gather different things.
    for part in (encoder.get_input_embeddings(), *layers, encoder):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    model.is_sharded = True

    # DistributedDataParallel sees to the others alone. It looks for this name.
    named = model.named_parameters()
    frozen = [name for name, parameter in named if not parameter.requires_grad]
    model.__dict__["_ddp_params_and_buffers_to_ignore"] = frozen


class Turns:
    """Keep the processes of a sharded model at the same pass; of any other model, do nothing.

    Call `take` before every pass, and `finish` when there are no more.
    """

    def __init__(self, model: PairModel):
        self.active = model.is_sharded
        self.device = next(model.head.parameters()).device

    def take(self) -> None:
        """Wait until all processes run a pass."""
        if self.active:
            self._count(1)

    def finish(self, run_pass: Callable[[], object]) -> None:
        """Run passes that count for nothing until every process has finished."""
        while self.active and self._count(0):
            run_pass()

    def _count(self, own: int) -> int:
        """Return how many processes are about to run a pass for themselves."""
        running = torch.tensor(own, device=self.device)
        dist.all_reduce(running)
        return int(running)

    def most(self, passes: int) -> int:
        """Return the largest number of passes that any process has."""
        if not self.active:
            return passes
        largest = torch.tensor(passes, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)
