"""DeBERTa's attention made fast, by modules that take the place of transformers' with the same weights and names.

transformers computes the position terms with gathers over batch-sized tensors and has no fused kernel for them; on
CUDA and CPU ours takes its place, elsewhere and for what kit never asks of it (attention maps, other queries than the
sequence itself) transformers' own code still runs.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from kit.attention.disentangled import Attend, PositionBias, Table
from kit.attention.sdpa import SequenceLengths


class FastAttention(DisentangledSelfAttention):
    """As its base class, to rounding; without dropout the two agree on every token that is not padding.

    A compiled encoder runs it uncompiled: torch.compile cannot follow views that strides alone describe.
    """

    @torch.compiler.disable
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mixed values (B, T, H) and None, for hidden states (B, T, H) and `KeyMaskEncoder`'s mask (B, 1, 1, T)."""
        unusual = output_attentions or query_states is not None or relative_pos is not None
        device = hidden_states.device.type
        if unusual or attention_mask.shape[1:3] != (1, 1) or device not in ("cpu", "cuda"):
            # also of an encoder that gives attention maps, which `kit.attention.unpadded` therefore leaves alone
            return super().forward(
                hidden_states,
                attention_mask,
                output_attentions,
                query_states,
                relative_pos,
                rel_embeddings,
            )
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = (self.attention_head_size * terms) ** -0.5
        q = (
            self._heads(self.query_proj(hidden_states)) * scale
        )  # before the product, which fp16 could not hold
        k, v = (
            self._heads(self.key_proj(hidden_states)),
            self._heads(self.value_proj(hidden_states)),
        )
        lengths, real = _sequences(attention_mask[:, 0, 0])
        c2p, p2c = self._tables(rel_embeddings, max(lengths), scale)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, H, D)
        dropout = self.dropout.p if self.training else 0.0
        if device == "cpu":
            mixed = Attend.apply(q, k, v, c2p, p2c, lengths, None if real.all() else real, dropout)
        else:
            mixed = attend_with_bias(q, k, v, c2p, p2c, real, dropout)
        return mixed.flatten(1).unflatten(0, hidden_states.shape[:2]), None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_attention_heads, -1))

    def _tables(self, embeddings: Tensor | None, length: int, scale: float) -> tuple[Table, Table]:
        """The position tables of `kit.attention.disentangled`: the distances that occur are projected once, not per row."""
        if not self.relative_attention or not self.pos_att_type:
            return None, None
        start, stop, rows = table_rows(
            length,
            self.position_buckets,
            self.max_relative_positions,
            self.pos_ebd_size,
            embeddings.device,
        )
        embeddings = self.pos_dropout(embeddings[start:stop])
        c2p = p2c = None
        if "c2p" in self.pos_att_type:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            c2p = (
                self._heads(project(embeddings).index_select(0, rows)).transpose(0, 1).contiguous()
            )
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            scaled = (project(embeddings) * scale).index_select(0, rows.flip(0))
            p2c = self._heads(scaled).transpose(0, 1).contiguous()
        return c2p, p2c


def key_mask_encoder(encoder: nn.Module) -> "KeyMaskEncoder | None":
    """Where kit's attention is in a DeBERTa, None in other encoders."""
    inner = getattr(encoder, "encoder", None)
    return inner if isinstance(inner, KeyMaskEncoder) else None


class KeyMaskEncoder(DebertaV2Encoder):
    """Gives the layers the mask of the keys and no table of distances, where its base class makes (B, T, T) of each.

    What padding itself attends to changes with that, and nothing that it is computed into.

    In an unpadded pass (`kit.attention.unpadded`) the layers' mask has the number of each token's sequence, from 1.
    """

    _told: SequenceLengths | None = None

    @contextlib.contextmanager
    def unpadded(self, told: SequenceLengths) -> Iterator[None]:
        """Within it the one row of a batch is sequences of these lengths."""
        self._told = told
        try:
            yield
        finally:
            self._told = None

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """(B, T) -> (B, 1, 1, T); another mask as the base class has it."""
        if self._told is not None:
            self._told.arrived = True
            numbers = torch.arange(1, len(self._told) + 1)
            return numbers.repeat_interleave(torch.tensor(self._told))[None, None, None]
        if attention_mask.dim() == 2:
            return attention_mask[:, None, None]
        return super().get_attention_mask(attention_mask)

    def get_rel_pos(
        self,
        hidden_states: Tensor,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
    ) -> Tensor | None:
        """None where the attention can tell the distances from the length."""
        return (
            relative_pos
            if query_states is None
            else super().get_rel_pos(hidden_states, query_states, relative_pos)
        )


def _sequences(mask: Tensor) -> tuple[list[int], Tensor]:
    """The lengths of what a mask (B, T) of `KeyMaskEncoder` separates, padding included, and what is real (B, T)."""
    size, length = mask.shape
    if size == 1 and mask.device.type == "cpu" and mask[0, -1] > 1:
        return torch.unique_consecutive(mask[0], return_counts=True)[1].tolist(), mask > 0
    return [length] * size, mask > 0


def attend_with_bias(
    q: Tensor, k: Tensor, v: Tensor, c2p: Table, p2c: Table, real: Tensor, dropout: float
) -> Tensor:
    """As `Attend`, by torch's fused kernels, which take a bias and its gradient: (N, H, D) in and out, N = B·T."""
    bias = real[:, None, None]
    if c2p is not None or p2c is not None:
        bias = PositionBias.apply(q, k, c2p, p2c, real)
    q, k, v = (x.unflatten(0, real.shape).transpose(1, 2) for x in (q, k, v))
    return (
        functional.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)
        .transpose(1, 2)
        .flatten(0, 1)
    )


@lru_cache(maxsize=64)
def table_rows(
    length: int, buckets: int, most: int, span: int, device: torch.device
) -> tuple[int, int, Tensor]:
    """Which embeddings a sequence's distances use: the range `start:stop`, and the row of it for each distance.

    Entry r of the 2·length-1 is for a key that stands r-(length-1) places after its query.
    """
    with torch.inference_mode(False):  # a prediction may ask first, and a training use what it got
        distances = torch.arange(length - 1, -length, -1, device=device)
        if buckets > 0 and most > 0:
            distances = make_log_bucket_position(distances, buckets, most).long()
        rows = (distances + span).clamp(0, 2 * span - 1)
        start, stop = int(rows.min()), int(rows.max()) + 1
        return start, stop, rows - start
