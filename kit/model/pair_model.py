"""The pair model: one encoder over both sequences of a row, pooled, compared, three logits.

The sequences are (prompt, A) and (prompt, B), or under the shape "cross" (prompt, A, B) and (prompt, B, A). Swapping
the answers swaps the sequences either way, so all that follows is the same for both.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kit.attention.patch import is_patched
from kit.attention.unpadded import run_unpadded
from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError, RunError
from kit.model.backbones import local_backbone
from kit.model.encoder import build_encoder, load_tokenizer
from kit.model.heads import build_head, swap_features
from kit.model.pooling import build_pooling
from kit.model.reward import build_reward_head
from kit.recipe.spec import ModelSpec
from kit.storage.atomic import atomic_file, write_json
from kit.task import SWAP

FORMAT = 3  # of config.json; raised when an older kit could not read it any more
COUNTED = 3  # the first format whose features are counted as they are now
_AGAIN = "Train it again, or copy the folder whole."


class PairModel(nn.Module):
    """An encoder shared by both sequences of a row, a pooling, a head, and of a reward model its reward.

    Sequences arrive as packs: all B·S of them sorted by length and cut into a few rectangles, each padded only to
    its own longest, or on a CPU end to end in one row (see `model.collator`). `order` says where in the packs each row's
    sequences are. With `spec.features` the head also reads `features`: raw numbers of the sides (B, 2, F) and of the
    pair (B, P).

    Attributes:
        half_width: the encoder's hidden size, or 0 where nobody knows whether it computes well in bf16 on a CPU.
        reads: the names of these F and P numbers, in order; None where it reads none.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: dict[str, Any],
        spec: ModelSpec,
        reads: tuple[Sequence[str], Sequence[str]] = (SIDE_NAMES, PAIR_FEATURES),
    ):
        super().__init__()
        self.encoder_config, self.spec = config, spec
        self.reads = reads if spec.features else None
        hidden = encoder.config.hidden_size  # which some families call otherwise in their files
        self.encoder = encoder
        self.half_width = hidden if is_patched(encoder) else 0
        self.pooling = build_pooling(spec.pooling, hidden)
        self.reward = build_reward_head(config, hidden) if spec.reward else None
        side = hidden + spec.reward  # a side's vector is what was pooled, and its reward
        self.head = build_head(
            spec.head, side, spec.head_hidden, spec.head_dropout, self.reads, spec.shape
        )

    @property
    def symmetric(self) -> bool:
        """Whether swapping A and B does no more than permute the logits."""
        return self.spec.head == "symmetric"

    @property
    def reads_first(self) -> bool:
        """Whether logits are of a row's first sequence alone; the second is then for `both_orders`."""
        return self.spec.shape == "cross" and not self.symmetric

    def encode(self, packs: list[dict[str, Tensor]], order: Tensor) -> Tensor:
        """Vectors as of `pool`: packs of (n, T) tokens, sum(n) = B·S, order (B, S) -> (B, S, H)."""
        return torch.cat([self.pool(pack) for pack in packs])[order]

    def pool(self, pack: dict[str, Tensor]) -> Tensor:
        """Pooled vectors, float32, the reward last: (n, T) tokens, or n sequences end to end -> (n, H)."""
        if "lengths" in pack:
            states, real = run_unpadded(self.encoder, pack)
        else:
            states, real = (
                self.encoder(**pack).last_hidden_state,
                pack["attention_mask"],
            )  # (n, T, H), (n, T)
        with torch.autocast(states.device.type, enabled=False):
            vectors = self.pooling(states, real)
            return vectors if self.reward is None else torch.cat([vectors, self.reward(states)], -1)

    def fit_features(self, tabular: FeatureTable, rows: np.ndarray) -> None:
        """Standardises features by these rows, which must be rows to train on; does nothing where none are read."""
        if self.reads:
            self.head.features.fit(tabular.select(*self.reads), rows)

    def classify(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Logits, float32: (B, S, H) -> (B, 3). The head is too small for half precision to pay."""
        with torch.autocast(sides.device.type, enabled=False):
            logits = self.head(sides.float(), features)
            return logits if self.reward is None else logits + self.reward.prefer(sides[..., -1])

    def forward(
        self,
        packs: list[dict[str, Tensor]],
        order: Tensor,
        features: dict[str, Tensor] | None = None,
        augment: bool = False,
    ) -> Tensor:
        """Logits (B, 3), or with `augment` those of `both_orders`: what distributed training wraps is this method."""
        sides = self.encode(packs, order)
        return self.both_orders(sides, features) if augment else self.classify(sides, features)

    def both_orders(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Logits as given and with A and B swapped (classes permuted back): (B, S, H) -> (B, 2, 3)."""
        swapped = self.classify(sides.flip(1), swap_features(features))[:, list(SWAP)]
        return torch.stack([self.classify(sides, features), swapped], 1)

    def save_pretrained(self, folder: str | Path, vocabulary: PairTokenizer) -> None:
        """Writes model.safetensors, config.json and the tokenizer; `from_pretrained` needs nothing else."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.save(folder)
        with atomic_file(folder / "model.safetensors") as temporary:
            save_file(
                {k: v.contiguous() for k, v in self.state_dict().items()},
                temporary,
                metadata={"format": "pt"},
            )
        spec = {name: getattr(self.spec, name) for name in self.spec.__dataclass_fields__}
        reads = (
            {"features": dict(zip(("sides", "pair"), self.reads, strict=True))}
            if self.reads
            else {}
        )
        write_json(
            folder / "config.json",
            {"format": FORMAT, "model": spec, "encoder": self.encoder_config} | reads,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> tuple["PairModel", PairTokenizer]:
        """The model (in evaluation mode, float32) and its tokenizer, from `save_pretrained`'s files; no network.

        Raises:
            RunError: a file is missing or damaged, was written by a newer kit, or by an older one that counted the
                features it reads otherwise, or the weights are of another model.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["format"] > FORMAT:
                raise RunError(
                    f"{folder}: written by a newer kit (format {config['format']})", "Upgrade kit."
                )
            spec = ModelSpec(**config["model"])
            if spec.features and config["format"] < COUNTED:
                raise RunError(
                    f"{folder}: it learned from features as an older kit counted them (format {config['format']})",
                    "Train it again, or predict with the kit that trained it.",
                )
            reads = (
                (config["features"]["sides"], config["features"]["pair"])
                if spec.features
                else ((), ())
            )
            model = cls(
                build_encoder(config["encoder"], spec.fast_attention),
                config["encoder"],
                spec,
                reads,
            )
            weights = load_file(folder / "model.safetensors")
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            SafetensorError,
            StrictDataclassError,
        ) as error:
            raise RunError(f"{folder}: not a trained model of kit: {error}", _AGAIN) from error
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip()
            raise RunError(
                f"{folder}: model.safetensors is not of the model in config.json: {why[:200]}",
                _AGAIN,
            ) from error
        try:
            return model.eval(), load_tokenizer(local_backbone(folder))
        except BackboneError as error:
            raise RunError(
                f"{folder}: its tokenizer cannot be used: {error.problem}", _AGAIN
            ) from error
