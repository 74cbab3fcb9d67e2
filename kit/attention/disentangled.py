"""Compute DeBERTa's disentangled attention and its gradients.

Use `TiledDisentangledAttention` on a CPU and `PositionBias`, with a fused kernel, on a GPU.

A score is q_i·k_j + q_i·a[i-j] + k_j·b[i-j] (He et al. 2021, eq. 4): content, content to position,
position to content. With one row per distance in the tables a and b, a position term is a strided
view of a matrix product, as in Transformer-XL's shift (Dai et al. 2019, appendix B). Nothing is
gathered, and nothing scattered in the backward pass.

Shapes: q, k, v are (N, H, D), of sequences end to end, with the softmax scale already in q. Tables
are (H, 2M-1, D) for sequences of up to M tokens; row r is for the column that is r-(M-1) places
after its row. In `c2p` the rows are queries; in `p2c`, which has the scale in it, too, they are
keys. In a tile, h and n are its heads and sequences.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kit.attention.dropout import STEPS, RandomBits, copy_signs, to_steps
from kit.attention.tiles import Tile, cut_tiles, empty_scores

# Bytes of float32 scores at a time, by device; on a CPU per thread, so that they stay in its cache.
CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}

# Rows of a position term at a time, by device. A block of R rows needs only T + R - 1 distances of
# 2T - 1.
BLOCK_ROWS = {"cpu": 128, "cuda": 128}

# A table, or None where the attention has no such term.
Table = Tensor | None


class TiledDisentangledAttention(torch.autograd.Function):
    """Attention over tiles that stay in a CPU's cache: (N, H, D) in, (N, H, D) out.

    Of the scores only the probabilities are kept for the backward pass, once; a negative sign marks
    those that dropout removed. Softmax is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        c2p: Table,
        p2c: Table,
        lengths: Sequence[int],
        real: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """Return mixed values (N, H, D).

        Args:
            lengths: of the sequences.
            real: (B, T), False on padding, where all B sequences have T tokens; None where there is
                no padding.
            dropout: probability that a weight is dropped, to the nearest 1/32768.
        """
        steps = to_steps(dropout)
        tiles = _cut_tiles(q, lengths)
        out = v.new_empty(v.shape)
        kept = empty_scores(tiles, q) if any(ctx.needs_input_grad) else None
        bits = RandomBits() if steps else None

        # What dropout leaves is scaled up, so that the mean stays.
        dropout_scale = STEPS / (STEPS - steps)
        with torch.autocast(q.device.type, enabled=False):
            padding = None if real is None else _padding_bias(real, torch.float32)
            for tile in tiles:
                qs, ks, vs = (tile.of(x).contiguous() for x in (q, k, v))  # (h, n, T, D)
                scores = _product(qs, ks.mT).float()  # (h, n, T, T)
                _add_positions(scores, qs, ks, _tile_table(c2p, tile), _tile_table(p2c, tile))
                if padding is not None:
                    scores.add_(padding[tile.sequences])
                torch.softmax(scores, -1, out=scores)
                if bits:
                    copy_signs(scores, bits.draw_signs(scores.shape, steps))
                if kept is not None:
                    tile.of_scores(kept).copy_(scores)
                if bits:
                    scores.clamp_min_(0)
                mixed = _product(scores.to(v.dtype), vs)
                tile.of(out).copy_(mixed.mul_(dropout_scale) if bits else mixed)
        ctx.dropout_scale = dropout_scale
        ctx.tiles = tiles
        ctx.save_for_backward(q, k, v, c2p, p2c, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v and the tables."""
        q, k, v, c2p, p2c, kept, out = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        dc2p = _zero_gradient(c2p)
        dp2c = _zero_gradient(p2c)

        # What the gradient of softmax subtracts: (N, H, 1).
        inner = (dout * out).sum(-1, keepdim=True, dtype=torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            for tile in ctx.tiles:
                qs, ks, vs = (tile.of(x).contiguous() for x in (q, k, v))
                do = tile.of(dout) * ctx.dropout_scale
                signed = tile.of_scores(kept).float()  # (h, n, T, T), a view in float32
                used = signed.clamp_min(0)
                tile.of(dv).copy_(_product(used.to(v.dtype).mT, do))

                # Of the scores; `used` is overwritten once it is not needed.
                grad = _product(do, vs.mT).float().mul_(used)
                grad.addcmul_(torch.abs(signed, out=used), tile.of(inner), value=-1)
                grad = grad.to(q.dtype)
                dqs = _product(grad, ks)
                dks = _product(grad.mT, qs)
                tables = (_tile_table(table, tile) for table in (c2p, p2c, dc2p, dp2c))
                _add_position_gradients(grad, qs, ks, dqs, dks, *tables)
                tile.of(dq).copy_(dqs)
                tile.of(dk).copy_(dks)
        return dq, dk, dv, _cast_like(dc2p, c2p), _cast_like(dp2c, p2c), None, None, None


class PositionBias(torch.autograd.Function):
    """Position terms and padding as one bias (B, H, T, T) for `scaled_dot_product_attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, c2p: Table, p2c: Table, real: Tensor) -> Tensor:
        """Return the bias in q's type, for real (B, T), False on padding."""
        size, length = real.shape
        tiles = _cut_tiles(q, [length] * size)

        # The memory-efficient kernel takes rows at multiples of 8 as they are, and would copy
        # others.
        bias = q.new_zeros(size, q.shape[1], length, -(-length // 8) * 8)[..., :length]
        with torch.autocast(q.device.type, enabled=False):
            for tile in tiles:
                scores = bias[tile.sequences, tile.heads].transpose(0, 1)
                tables = (_tile_table(table, tile) for table in (c2p, p2c))
                _add_positions(scores, tile.of(q), tile.of(k), *tables)
        ctx.tiles = tiles
        ctx.save_for_backward(q, k, c2p, p2c)

        # Padding is filled in and not added, which could overflow in fp16.
        return bias.masked_fill_(~real[:, None, None], torch.finfo(bias.dtype).min)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and the tables."""
        q, k, c2p, p2c = ctx.saved_tensors
        dq = torch.zeros_like(q)
        dk = torch.zeros_like(k)
        dc2p = _zero_gradient(c2p)
        dp2c = _zero_gradient(p2c)
        with torch.autocast(q.device.type, enabled=False):
            for tile in ctx.tiles:
                scores = grad[tile.sequences, tile.heads].transpose(0, 1)
                parts = (tile.of(x) for x in (q, k, dq, dk))
                tables = (_tile_table(table, tile) for table in (c2p, p2c, dc2p, dp2c))
                _add_position_gradients(scores, *parts, *tables)
        return dq, dk, _cast_like(dc2p, c2p), _cast_like(dp2c, p2c), None


def _cut_tiles(q: Tensor, lengths: Sequence[int]) -> list[Tile]:
    """Cut tiles with CHUNK_BYTES of float32 scores: several sequences, or some heads of one."""
    threads = torch.get_num_threads() if q.device.type == "cpu" else 1
    max_scores = CHUNK_BYTES[q.device.type] * threads // 4
    return cut_tiles(lengths, q.shape[1], max_scores, max_scores)


def _tile_table(table: Table, tile: Tile) -> Table:
    """View a table's rows for the tile's heads and distances within T tokens: (h, 2T-1, D)."""
    if table is None:
        return None
    beyond = (table.shape[1] + 1) // 2 - tile.length
    return table[tile.heads, beyond : table.shape[1] - beyond]


def _add_positions(scores: Tensor, q: Tensor, k: Tensor, c2p: Table, p2c: Table) -> None:
    """Add the position terms to scores (h, n, T, T), of q, k (h, n, T, D), tables (h, 2T-1, D)."""
    for table, rows, into in ((c2p, q, scores), (p2c, k, scores.mT)):
        if table is None:
            continue
        for block, distances in _blocks(rows):
            by_distance = _product_with_table(rows[:, :, block], table[:, distances].mT)
            into[:, :, block].add_(_by_column(by_distance.to(scores.dtype)))


def _add_position_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    dq: Tensor,
    dk: Tensor,
    c2p: Table,
    p2c: Table,
    dc2p: Table,
    dp2c: Table,
) -> None:
    """Add to dq, dk, dc2p and dp2c what follows for them from the scores' gradient (h, n, T, T)."""
    by_distance = grad.new_zeros(0)
    for table, rows, of, drows, dtable in ((c2p, q, grad, dq, dc2p), (p2c, k, grad.mT, dk, dp2c)):
        if table is None or dtable is None:
            continue
        for block, distances in _blocks(rows):
            part = rows[:, :, block]
            near = table[:, distances]

            # All blocks of one shape write to the same places and leave the others 0, so one buffer
            # serves them.
            shape = (*part.shape[:3], near.shape[1])
            if by_distance.shape != shape:
                by_distance = grad.new_zeros(shape)
            _by_column(by_distance).copy_(of[:, :, block])

            drows[:, :, block].add_(_product_with_table(by_distance, near))
            transposed = by_distance.flatten(1, 2).mT  # (h, T + R - 1, n·R)
            dtable[:, distances].add_(torch.bmm(transposed, part.flatten(1, 2)))


def _blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of R rows, and their distances to all T columns: T + R - 1 rows of a table."""
    length = rows.shape[2]
    step = BLOCK_ROWS[rows.device.type]
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield slice(start, stop), slice(length - stop, 2 * length - 1 - start)


def _by_column(by_distance: Tensor) -> Tensor:
    """View a block's product by distance (h, n, R, T + R - 1), contiguous, by column: (h, n, R, T).

    Column c of row r has the distance with number c - r + R - 1, so each row begins one number
    earlier than the last.
    """
    rows, distances = by_distance.shape[2:]
    shape = (*by_distance.shape[:3], distances - rows + 1)
    strides = (*by_distance.stride()[:2], distances - 1, 1)
    return by_distance.as_strided(shape, strides, by_distance.storage_offset() + rows - 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply per head and sequence: (h, n, X, Y) by (h, n, Y, Z) -> (h, n, X, Z)."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _product_with_table(left: Tensor, table: Tensor) -> Tensor:
    """Multiply per head, all sequences at once: (h, n, R, X) by (h, X, Y) -> (h, n, R, Y)."""
    return torch.bmm(left.flatten(1, 2), table).unflatten(1, left.shape[1:3])


def _padding_bias(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what keeps queries off padding when it is added to the scores: (B, T) -> (B, 1, T)."""
    zero = torch.zeros((), dtype=dtype, device=real.device)
    return torch.where(real, zero, torch.finfo(dtype).min)[:, None]


def _zero_gradient(table: Table) -> Table:
    return None if table is None else torch.zeros_like(table, dtype=torch.float32)


def _cast_like(gradient: Table, table: Table) -> Table:
    if gradient is None or table is None:
        return None
    return gradient.to(table.dtype)
