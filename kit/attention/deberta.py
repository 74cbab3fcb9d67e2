"""Compute DeBERTa's attention fast, in modules with the weights and names of transformers' own.

Use `FastAttention` in a `KeyMaskEncoder`; `attention.patch` puts both in place.

transformers computes the position terms with gathers over batch-sized tensors and has no fused
kernel for them. These modules replace it on CUDA and CPU. Elsewhere, and for what kit never asks
for (attention maps, other queries than the sequence itself), transformers' own code still runs.
"""

import contextlib
from collections.abc import Generator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from kit.attention.disentangled import PositionBias, Table, TiledDisentangledAttention
from kit.attention.sdpa import SequenceLengths


class FastAttention(DisentangledSelfAttention):
    """As its base class, to rounding; without dropout both agree on all tokens but padding.

    A compiled encoder runs it uncompiled: torch.compile cannot follow views that are described by
    strides alone.
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
        """Return mixed values (B, T, H) and None for states (B, T, H) and a mask (B, 1, 1, T)."""
        unusual = output_attentions or query_states is not None or relative_pos is not None
        device = hidden_states.device.type
        if unusual or attention_mask.shape[1:3] != (1, 1) or device not in ("cpu", "cuda"):
            # An encoder that gives attention maps comes here, too; `unpadded` does not take it.
            return super().forward(
                hidden_states,
                attention_mask,
                output_attentions,
                query_states,
                relative_pos,
                rel_embeddings,
            )

        # The scale goes into the queries, before the product: fp16 could not hold unscaled scores.
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = (self.attention_head_size * terms) ** -0.5
        q = self._split_heads(self.query_proj(hidden_states)) * scale
        k = self._split_heads(self.key_proj(hidden_states))
        v = self._split_heads(self.value_proj(hidden_states))

        lengths, real = _sequence_lengths(attention_mask[:, 0, 0])
        c2p, p2c = self._position_tables(rel_embeddings, max(lengths), scale)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, H, D)
        dropout = self.dropout.p if self.training else 0.0
        if device == "cpu":
            padding = None if real.all() else real
            mixed = TiledDisentangledAttention.apply(q, k, v, c2p, p2c, lengths, padding, dropout)
        else:
            mixed = attend_with_bias(q, k, v, c2p, p2c, real, dropout)
        return mixed.flatten(1).unflatten(0, hidden_states.shape[:2]), None

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_attention_heads, -1))

    def _position_tables(
        self, embeddings: Tensor | None, length: int, scale: float
    ) -> tuple[Table, Table]:
        """Return the tables c2p and p2c of `attention.disentangled`.

        Only distances that occur are projected, and each embedding once, however many distances
        share it.
        """
        if embeddings is None or not self.relative_attention or not self.pos_att_type:
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
            projected = project(embeddings).index_select(0, rows)
            c2p = self._split_heads(projected).transpose(0, 1).contiguous()
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            projected = (project(embeddings) * scale).index_select(0, rows.flip(0))
            p2c = self._split_heads(projected).transpose(0, 1).contiguous()
        return c2p, p2c


class KeyMaskEncoder(DebertaV2Encoder):
    """Give the layers a mask of keys and no distances, and keep the last layer's states only.

    The base class makes (B, T, T) of mask and distances. A mask of keys changes what padding itself
    attends to, but nothing that is computed from it.

    In an unpadded pass (`attention.unpadded`) the layers' mask holds the number of each token's
    sequence, from 1.
    """

    _sequences: SequenceLengths | None = None

    @contextlib.contextmanager
    def unpadded(self, sequences: SequenceLengths) -> Generator[None]:
        """Within this context the one row of a batch consists of sequences of these lengths."""
        self._sequences = sequences
        try:
            yield
        finally:
            self._sequences = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_hidden_states: bool = True,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        """Return the last layer's states, also as the only ones of `hidden_states`.

        The model around it always asks for the states of all layers and takes the last. In a
        prediction they would be 13 to 25 float32 copies where two are enough.
        """
        output = super().forward(
            hidden_states,
            attention_mask,
            False,
            output_attentions,
            query_states,
            relative_pos,
            True,
        )
        last = output.last_hidden_state
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=(last,), attentions=output.attentions
        )

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """Return the layers' mask: (B, T) -> (B, 1, 1, T); another mask goes to the base class."""
        if self._sequences is not None:
            self._sequences.arrived = True
            numbers = torch.arange(1, len(self._sequences) + 1)
            return numbers.repeat_interleave(torch.tensor(self._sequences))[None, None, None]
        if attention_mask.dim() == 2:
            return attention_mask[:, None, None]
        return super().get_attention_mask(attention_mask)

    def get_rel_pos(
        self,
        hidden_states: Tensor,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
    ) -> Tensor | None:
        """Return None where the attention can compute the distances from the length."""
        if query_states is None:
            return relative_pos
        return super().get_rel_pos(hidden_states, query_states, relative_pos)


def key_mask_encoder(encoder: nn.Module) -> KeyMaskEncoder | None:
    """Return the part of a DeBERTa that has kit's attention, None of other encoders."""
    inner = getattr(encoder, "encoder", None)
    return inner if isinstance(inner, KeyMaskEncoder) else None


def _sequence_lengths(mask: Tensor) -> tuple[list[int], Tensor]:
    """Return the lengths of a mask's (B, T) sequences, with their padding, and what is real."""
    size, length = mask.shape
    if size == 1 and mask.device.type == "cpu" and mask[0, -1] > 1:
        return torch.unique_consecutive(mask[0], return_counts=True)[1].tolist(), mask > 0
    return [length] * size, mask > 0


def attend_with_bias(
    q: Tensor, k: Tensor, v: Tensor, c2p: Table, p2c: Table, real: Tensor, dropout: float
) -> Tensor:
    """Return mixed values by torch's fused kernels, which take a bias and its gradient.

    q, k, v (N, H, D), tables (H, 2T-1, D), real (B, T) -> (N, H, D), with N = B·T: as
    `TiledDisentangledAttention`.
    """
    bias = real[:, None, None]
    if c2p is not None or p2c is not None:
        bias = PositionBias.apply(q, k, c2p, p2c, real)
    q, k, v = (x.unflatten(0, real.shape).transpose(1, 2) for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)
    return mixed.transpose(1, 2).flatten(0, 1)


# One entry for each length up to two thousand tokens, 16 KB at most: with few entries nearly every
# pack would miss, and on a GPU each miss waits for the device.
@lru_cache(maxsize=2048)
def table_rows(
    length: int, buckets: int, max_distance: int, span: int, device: torch.device
) -> tuple[int, int, Tensor]:
    """Return which embeddings a sequence's distances use: a range `start:stop`, and rows of it.

    Entry r of the 2·length-1 rows is for a key that is r-(length-1) places after its query.
    """
    # A prediction may ask first, and a training must be able to use the cached tensor.
    with torch.inference_mode(False):
        distances = torch.arange(length - 1, -length, -1, device=device)
        if buckets > 0 and max_distance > 0:
            distances = make_log_bucket_position(distances, buckets, max_distance).long()
        rows = (distances + span).clamp(0, 2 * span - 1)
        start = int(rows.min())
        stop = int(rows.max()) + 1
        return start, stop, rows - start
