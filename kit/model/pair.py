"""The pair model: one shared encoder over (prompt, answer A) and (prompt, answer B), pooled, compared, three logits."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kit.atomic import write_json, writing
from kit.data.encode import Vocabulary
from kit.errors import BackboneError, RunError
from kit.model import heads, pooling
from kit.model.encoder import build, load_vocabulary
from kit.recipe import ModelSpec
from kit.schema import SWAP

FORMAT = 1  # of config.json; raised when an older kit could not read it any more
_AGAIN = "Train it again, or copy the folder whole."


class PairModel(nn.Module):
    """An encoder shared by both sides, a pooling and a head.

    Sequences arrive as packs: all B·S of them sorted by length and cut into a few rectangles, each padded only to
    its own longest (see `model.batches`). `order` says where in the packs each row's sides are.
    """

    def __init__(self, encoder: nn.Module, config: dict[str, Any], spec: ModelSpec):
        super().__init__()
        self.encoder_config, self.spec = config, spec
        hidden = encoder.config.hidden_size  # which some families call otherwise in their files
        self.encoder = encoder
        self.pooling = pooling.build(spec.pooling, hidden)
        self.head = heads.build(spec.head, hidden, spec.head_hidden, spec.head_dropout)

    def encode(self, packs: list[dict[str, Tensor]], order: Tensor) -> Tensor:
        """Pooled vectors, float32: packs of (n, T) tokens with sum(n) = B·S, order (B, S) -> (B, S, H)."""
        pooled = []
        for pack in packs:
            states = self.encoder(**pack).last_hidden_state  # (n, T, H)
            with torch.autocast(states.device.type, enabled=False):
                pooled.append(self.pooling(states, pack["attention_mask"]))
        return torch.cat(pooled)[order]

    def classify(self, sides: Tensor) -> Tensor:
        """Logits, float32: (B, S, H) -> (B, 3). The head is too small for half precision to pay."""
        with torch.autocast(sides.device.type, enabled=False):
            return self.head(sides.float())

    def forward(self, packs: list[dict[str, Tensor]], order: Tensor) -> Tensor:
        """Logits (B, 3)."""
        return self.classify(self.encode(packs, order))

    def both_orders(self, packs: list[dict[str, Tensor]], order: Tensor) -> Tensor:
        """Logits as given and with A and B swapped (classes permuted back), from one encoder pass: (B, 2, 3)."""
        sides = self.encode(packs, order)
        return torch.stack([self.classify(sides), self.classify(sides.flip(1))[:, list(SWAP)]], 1)

    def save_pretrained(self, folder: str | Path, vocabulary: Vocabulary) -> None:
        """Writes model.safetensors, config.json and the tokenizer; `from_pretrained` needs nothing else."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.save(folder)
        with writing(folder / "model.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, temporary, metadata={"format": "pt"})
        spec = {name: getattr(self.spec, name) for name in self.spec.__dataclass_fields__}
        write_json(folder / "config.json", {"format": FORMAT, "model": spec, "encoder": self.encoder_config})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> tuple["PairModel", Vocabulary]:
        """The model (in evaluation mode, float32) and its tokenizer, from `save_pretrained`'s files; no network.

        Raises:
            RunError: a file is missing or damaged, was written by a newer kit, or the weights are of another model.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["format"] > FORMAT:
                raise RunError(f"{folder}: written by a newer kit (format {config['format']})", "Upgrade kit.")
            model = cls(build(config["encoder"]), config["encoder"], ModelSpec(**config["model"]))
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
            raise RunError(f"{folder}: not a trained model of kit: {error}", _AGAIN) from error
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip()
            raise RunError(
                f"{folder}: model.safetensors is not of the model in config.json: {why[:200]}", _AGAIN
            ) from error
        try:
            return model.eval(), load_vocabulary(folder)
        except BackboneError as error:
            raise RunError(f"{folder}: its tokenizer cannot be used: {error.problem}", _AGAIN) from error
