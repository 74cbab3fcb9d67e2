"""`python -m kit.model.preflight`: the GPUs of this machine as one line of JSON, in a process that ends at once."""

import json


def inspect_gpus() -> dict[str, object]:
    """Names, memory in GB, capabilities ("7.5"); torch's kernels; in words what is wrong with them ('' if nothing)."""
    import torch

    from kit.errors import KitError
    from kit.model.device import check_kernels

    kernels = torch.cuda.get_arch_list() if torch.version.cuda else []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    problem = ""
    for each in properties:
        try:
            check_kernels(each.name, (each.major, each.minor), kernels)
        except KitError as error:
            problem = str(error)
    memory = [round(p.total_memory / 1e9, 1) for p in properties]
    capabilities = [f"{p.major}.{p.minor}" for p in properties]
    return {
        "names": [p.name for p in properties],
        "memory_gb": memory,
        "capabilities": capabilities,
        "kernels": kernels,
        "problem": problem,
    }


if __name__ == "__main__":
    print(json.dumps(inspect_gpus()))
