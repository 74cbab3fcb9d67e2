"""Decide whether torchrun started this process. Use `is_leader` and `ignore_partial_launch`.

Job schedulers, MPI and a shell that once ran a distributed program leave some of torchrun's
variables behind. torch and accelerate would take each of them for a launch: they would wait for
processes that do not exist, or let a lone process believe that another one writes the result.
"""

import os
from collections.abc import Mapping, MutableMapping

# What torchrun sets for every process; only together do they mean a launch.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# What else accelerate reads: MPI's variables, the size of torchrun's group on one machine, and
# what `accelerate launch` adds for other ways to distribute a model.
_OTHER_VARIABLES = (
    "LOCAL_WORLD_SIZE",
    *(f"ACCELERATE_USE_{name}" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM")),
    *(f"PMI_{name}" for name in ("SIZE", "RANK")),
    *(
        f"{family}_COMM_WORLD_{name}"
        for family in ("OMPI", "MV2")
        for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    ),
    *(f"MPI_{name}" for name in ("LOCALRANKID", "LOCALNRANKS")),
)


def is_distributed(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun's whole set of variables is there and consistent."""
    try:
        rank, world, local, _port = (
            int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
    except (KeyError, ValueError):
        return False
    return 0 <= local <= rank < world and bool(environ.get("MASTER_ADDR"))


def is_leader(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process writes and prints: the only one, or torchrun's first."""
    return not is_distributed(environ) or environ["RANK"].strip() == "0"


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return this process's number on its machine, None without torchrun."""
    return int(environ["LOCAL_RANK"]) if is_distributed(environ) else None


def ignore_partial_launch(environ: MutableMapping[str, str] = os.environ) -> str:
    """Remove what only looks like a launch from the environment, before torch reads it.

    Returns:
        A note for the user where a variable of torchrun or MPI was removed, else "".
    """
    if is_distributed(environ):
        return ""
    found = [name for name in (*TORCHRUN_VARIABLES, *_OTHER_VARIABLES) if name in environ]
    for name in found:
        del environ[name]

    # An address alone starts nothing, and does not concern the user.
    telling = [name for name in found if not name.startswith("MASTER_")]
    if not telling:
        return ""
    return (
        f"ignored in the environment: {', '.join(telling)}. torchrun's whole set of variables is "
        "not there, so kit runs as a single process"
    )
