"""Write a trained run's whole weights in Hugging Face layout, adapters merged. Use `export_run`."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from kit.errors import RunError
from kit.model.adapters import merge_adapters
from kit.model.encoder import quiet_transformers
from kit.model.pair_model import PairModel
from kit.run import Run
from kit.storage.atomic import atomic_folder

# The weights of pooling and head, which Hugging Face's layout has no place for.
HEAD_FILE = "head.safetensors"

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_run(run: str | Path, out: Path, dtype: str = "bf16") -> list[Path]:
    """Write a folder for each of a run's models, and return the folders.

    A folder has the encoder for `AutoModel.from_pretrained`, its tokenizer, and pooling and head in
    `HEAD_FILE`. Adapters are added to the weights in float32, and rounded once.

    Adapters that were trained beside quantised weights are added to the whole ones.

    Args:
        dtype: "bf16", "fp16" or "fp32", of the encoder's weights.

    Raises:
        RunError: nothing is finished yet, the run is a baseline, or a folder is there already.
        BackboneError: the weights below the adapters are not here.
    """
    opened = Run.open(run)
    if opened.baseline:
        raise RunError(
            f"{run} is a baseline, which has no encoder to export", "Name a run of `kit train`."
        )
    folders = []
    for fold in opened.models():
        folder = out / fold.name
        if folder.exists():
            raise RunError(f"{folder} exists already", "Remove it, or choose another -o FOLDER.")
        fold.check_files()
        model, tokenizer = PairModel.from_pretrained(fold.path, dequantize=True)
        head = {
            name: value.contiguous()
            for name, value in model.state_dict().items()
            if not name.startswith("encoder.")
        }
        if model.base:
            merge_adapters(model.encoder)
        encoder = model.encoder.to(DTYPES[dtype])
        encoder.config.use_cache = True

        with quiet_transformers(), atomic_folder(folder) as temporary:
            encoder.save_pretrained(temporary)
            tokenizer.pretrained.save_pretrained(temporary)
            save_file(head, temporary / HEAD_FILE, metadata={"format": "pt"})
        folders.append(folder)
    return folders
