"""Classify a row with one encoder over both of its sequences. Use `PairModel`.

The sequences are (prompt, A) and (prompt, B), or under the shapes "cross" and "judge" (prompt, A,
B) and (prompt, B, A). Swapping the answers swaps the sequences either way, so everything after the
encoder is the same for all shapes.

A judge's adapters are saved without the weights below them, which `model.base` finds again.
"""

import dataclasses
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
from transformers import PreTrainedModel

from kit.attention.causal import CAUSAL_NAME
from kit.attention.patch import is_patched
from kit.attention.unpadded import pad_states, run_unpadded
from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError, RunError
from kit.model.adapters import AdapterSpec, add_adapters
from kit.model.backbones import local_backbone, refuse_fp16_overflow
from kit.model.base import BaseReference, find_base
from kit.model.checks import check_vocabulary, check_weights, find_padding_reader
from kit.model.device import choose_device
from kit.model.encoder import build_encoder, frozen_dtype, load_encoder, load_tokenizer
from kit.model.heads import SymmetricHead, build_head, swap_classes, swap_features
from kit.model.pooling import build_pooling
from kit.model.reward import LastTokenReward, build_reward_head
from kit.recipe.spec import ModelSpec
from kit.storage.atomic import atomic_file, read_text_file, write_json
from kit.storage.contents import describe_impostor
from kit.wording import shorten

# Format of config.json; raised when an older kit could not read it any more.
FORMAT = 3

# The first format whose features are computed as they are now.
FEATURES_FORMAT = 3

_RETRAIN = "Train it again, or copy the folder whole."


class PairModel(nn.Module):
    """An encoder shared by a row's sequences, a pooling, a head, and of a reward model its reward.

    Sequences arrive in packs (see `model.collator`): all B·S of them sorted by length and cut into
    a few rectangles (n, T), each padded only to its own longest, or on a CPU end to end in one row
    (1, N). `order` (B, S) says where each row's sequences are in the packs. With `spec.features`
    the head also reads `features`: raw numbers of the sides (B, 2, F) and of the pair (B, P).

    Attributes:
        bf16_width: the encoder's hidden size, 0 where it is unknown whether it computes well in
            bf16 on a CPU.
        fitting_tokens: the tokens of a prediction's pass that memory was found to have room for, 0
            as long as it never ran out.
        feature_names: names of the F features of a side and the P of the pair, in order; None
            without features.
        reads_padding: whether the encoder must be given one length at a time (see
            `checks.reads_padding`); None as long as that was not tried.
        base: reference to frozen weights that are not saved; None where all weights are the
            model's own.
        adapters: what the adapters above `base` were built from, if there are any.
        is_sharded: whether the processes of torchrun have a part of the frozen weights each (see
            `model.sharding`).
    """

    base: BaseReference | None = None
    adapters: AdapterSpec | None = None
    is_sharded: bool = False

    def __init__(
        self,
        encoder: PreTrainedModel,
        config: dict[str, Any],
        spec: ModelSpec,
        feature_names: tuple[Sequence[str], Sequence[str]] = (SIDE_NAMES, PAIR_FEATURES),
    ):
        super().__init__()
        self.encoder_config = config
        self.spec = spec
        self.reads_padding: bool | None = None
        self.fitting_tokens = 0
        self.feature_names = feature_names if spec.features else None

        # Some families have another name for it in their files; transformers knows it by this one.
        hidden = encoder.config.hidden_size
        self.encoder = encoder
        self.bf16_width = hidden if is_patched(encoder) else 0
        self.pooling = build_pooling(spec.pooling, hidden)
        self.reward = build_reward_head(config, hidden) if spec.reward else None

        # A side's vector is its pooled states, and its reward if there is one.
        side = hidden + spec.reward
        self.head = build_head(
            spec.head, side, spec.head_hidden, spec.head_dropout, self.feature_names, spec.shape
        )

    @property
    def symmetric(self) -> bool:
        """Whether swapping A and B only permutes the logits."""
        return self.spec.head == "symmetric"

    @property
    def reads_first_only(self) -> bool:
        """Whether logits depend on the first sequence alone; the second is for `both_orders`."""
        return self.spec.shape != "siamese" and not self.symmetric

    def encode(self, packs: list[dict[str, Tensor]], order: Tensor) -> Tensor:
        """Return pooled vectors by row: packs of B·S sequences, order (B, S) -> (B, S, H)."""
        return torch.cat([self.pool(pack) for pack in packs])[order]

    def pool(self, pack: dict[str, Tensor]) -> Tensor:
        """Return a pack's pooled vectors, float32, the reward last: (n, T) or (1, N) -> (n, H)."""
        if "lengths" in pack:
            states = run_unpadded(self.encoder, pack)  # (N, H)
            if self.spec.pooling == "last" and self.reward is None:
                return states[pack["lengths"].cumsum(0) - 1].float()
            states, real = pad_states(states, pack["lengths"])
        else:
            inputs = pack
            if self.encoder.config._attn_implementation == CAUSAL_NAME:
                inputs = {"input_ids": pack["input_ids"]}
            states = self.encoder(**inputs).last_hidden_state  # (n, T, H)
            real = pack["attention_mask"]  # (n, T)
        with torch.autocast(states.device.type, enabled=False):
            vectors = self.pooling(states, real)
            if self.reward is None:
                return vectors
            return torch.cat([vectors, self.reward(states, real)], -1)

    def start_from_prior(self, prior: np.ndarray) -> None:
        """Let a decoder begin with the class probabilities (3,) of the training rows.

        Of a reward model their odds follow from the rewards.
        """
        if self.spec.shape == "judge" or isinstance(self.reward, LastTokenReward):
            self.head.start_from_prior(prior)

    def leave_out_base(self, base: BaseReference, adapters: AdapterSpec | None = None) -> None:
        """Leave the frozen weights out of `state_dict`, and do not expect them in one."""
        self.base = base
        self.adapters = adapters
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_expect_no_frozen)

    def fit_features(self, tabular: FeatureTable, rows: np.ndarray) -> None:
        """Standardise features, if there are any, by these rows, which must be training rows."""
        if self.feature_names:
            self.head.features.fit_rows(tabular.select(*self.feature_names), rows)

    def classify(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Return logits: (B, S, H) -> (B, 3).

        In float32 always: the head is too small to gain from half precision.
        """
        with torch.autocast(sides.device.type, enabled=False):
            logits = self.head(sides.float(), features)
            if self.reward is None:
                return logits
            return logits + self.reward.preference_logits(sides[..., -1])

    def first_order(self, vectors: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Return the logits of rows of which only the first order was read: (B, H) -> (B, 3).

        A symmetric head adds the logits of both orders; the first one stands for the other, too.
        """
        sides = torch.stack([vectors, vectors], 1)
        if not isinstance(self.head, SymmetricHead):
            return self.classify(sides, features)
        with torch.autocast(sides.device.type, enabled=False):
            return 2 * self.head.pair(sides.float(), features)

    def both_orders(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """Return logits as given and with A and B swapped: (B, S, H) -> (B, 2, 3).

        Classes of the swapped ones are permuted back.
        """
        swapped = swap_classes(self.classify(sides.flip(1), swap_features(features)))
        return torch.stack([self.classify(sides, features), swapped], 1)

    def forward(
        self,
        packs: list[dict[str, Tensor]] | None = None,
        order: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
        augment: bool = False,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, 3), or with `augment` those of `both_orders` (B, 2, 3).

        Both go through this method because it is the one that distributed training wraps.

        Args:
            vectors: pooled vectors (B, S, H) of a frozen encoder, in place of packs and order.
        """
        sides = vectors
        if sides is None:
            assert packs is not None, "a batch has packs or vectors"
            assert order is not None, "packs come with their order"
            sides = self.encode(packs, order)
        return self.both_orders(sides, features) if augment else self.classify(sides, features)

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer: PairTokenizer,
        adapter_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Write model.safetensors, config.json and the tokenizer, for `from_pretrained`.

        Args:
            adapter_dtype: of adapters whose base is not saved. In the type that they are computed
                in, they give the same states and take half the bytes.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        with atomic_file(folder / "model.safetensors") as temporary:
            weights = {name: value.contiguous() for name, value in self.state_dict().items()}
            if self.base:
                for name in _trained_names(self):
                    weights[name] = weights[name].to(adapter_dtype)
            save_file(weights, temporary, metadata={"format": "pt"})

        config = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.spec),
            "encoder": self.encoder_config,
            "reads_padding": self.reads_padding,
        }
        if self.feature_names:
            sides, pair = self.feature_names
            config["features"] = {"sides": sides, "pair": pair}
        if tokenizer.frame:
            config["frame"] = dataclasses.asdict(tokenizer.frame)
        if self.base:
            config["base"] = dataclasses.asdict(self.base)
        if self.adapters:
            config["adapters"] = dataclasses.asdict(self.adapters)
        write_json(folder / "config.json", config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, precision: str = "fp32", dequantize: bool = False
    ) -> tuple["PairModel", PairTokenizer]:
        """Return the model and its tokenizer from `save_pretrained`'s files, without a network.

        The model is in evaluation mode and float32. Only for a base that is not here the hub may
        be asked.

        Args:
            precision: "auto" to have frozen weights that are not saved with the model in the type
                that is computed in here.
            dequantize: load them whole where the training had them quantised.

        Raises:
            RunError: a file is missing or damaged, was written by a newer kit, or by an older one
                that computed the model's features in another way, or the weights are of another
                model.
            BackboneError: the base of the adapters is not here, or is another one.
            RecipeError: the base was quantised, and bitsandbytes is not installed.
            DeviceError: they would be float16, in which a model of this family overflows.
        """
        folder = Path(folder)
        impostor = describe_impostor(folder / "model.safetensors").partition(":")[0]
        if impostor:
            raise RunError(f"{folder}: model.safetensors {impostor}", _RETRAIN)
        try:
            config = json.loads(read_text_file(folder / "config.json"))
            if config["format"] > FORMAT:
                raise RunError(
                    f"{folder}: written by a newer kit (format {config['format']})", "Upgrade kit."
                )
            spec = ModelSpec(**config["model"])
            if spec.features and config["format"] < FEATURES_FORMAT:
                raise RunError(
                    f"{folder}: trained on features that an older kit computed in another way "
                    f"(format {config['format']})",
                    "Train it again, or predict with the kit that trained it.",
                )
            feature_names = ((), ())
            if spec.features:
                feature_names = (config["features"]["sides"], config["features"]["pair"])
            refuse_fp16_overflow(
                str(folder), config["encoder"], choose_device(precision).precision, "this GPU"
            )
            base = adapters = None
            if "base" in config:
                base = BaseReference(**config["base"])
                dtype = frozen_dtype(precision, config["encoder"], spec.fast_attention)
                quantize = "none" if dequantize else spec.quantize
                encoder = load_encoder(find_base(base), spec.fast_attention, dtype, quantize)
                encoder.requires_grad_(False)
                if "adapters" in config:
                    adapters = AdapterSpec(**config["adapters"])
                    add_adapters(encoder, adapters)
            else:
                encoder = build_encoder(config["encoder"], spec.fast_attention)
            model = cls(encoder, config["encoder"], spec, feature_names)
            if base:
                model.leave_out_base(base, adapters)
            weights = load_file(folder / "model.safetensors")
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            SafetensorError,
            StrictDataclassError,
        ) as error:
            raise RunError(f"{folder}: not a trained model of kit: {error}", _RETRAIN) from error

        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            cause = shorten(str(error).splitlines()[-1].strip())
            raise RunError(
                f"{folder}: model.safetensors does not belong to config.json: {cause}", _RETRAIN
            ) from error

        try:
            frame = config.get("frame", {}).get("kind")
            tokenizer = load_tokenizer(local_backbone(folder), frame, spec.shape)
            if tokenizer.frame and dataclasses.asdict(tokenizer.frame) != config["frame"]:
                raise RunError(
                    f"{folder}: its frame around prompt and answers is not the one that this kit "
                    "builds",
                    "Predict with the kit that trained it, or train it again.",
                )
            check_vocabulary(tokenizer, config["encoder"]["vocab_size"], str(folder))
            if not base:
                check_weights(model, str(folder))

            # What was found when it was made; older kits did not write it down.
            if isinstance(config.get("reads_padding"), bool):
                model.reads_padding = config["reads_padding"]
            find_padding_reader(model, tokenizer)
            return model.eval(), tokenizer
        except BackboneError as error:
            raise RunError(f"{folder}: cannot be used: {error.problem}", _RETRAIN) from error


def _drop_frozen(model: PairModel, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Remove the frozen weights, and scales of quantised ones, from a state dict just made."""
    trained = {prefix + name for name in _trained_names(model)}
    for name in list(state):
        if name.startswith(f"{prefix}encoder.") and name not in trained:
            del state[name]


def _expect_no_frozen(model: PairModel, keys: Any) -> None:
    """Take the frozen weights off the list of those that a loaded state dict lacked."""
    trained = _trained_names(model)
    keys.missing_keys[:] = [
        key for key in keys.missing_keys if not key.startswith("encoder.") or key in trained
    ]


def _trained_names(model: PairModel) -> set[str]:
    named = model.encoder.named_parameters()
    return {f"encoder.{name}" for name, parameter in named if parameter.requires_grad}
