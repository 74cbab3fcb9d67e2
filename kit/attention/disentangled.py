"""DeBERTa's disentangled attention as two functions with gradients of their own: fast on a CPU, and a bias for a GPU.

A score is q_i·k_j + q_i·a[i-j] + k_j·b[i-j] (He et al. 2021, eq. 4): content, content to position, position to content.
With one row per distance in the tables a and b, a position term is a strided view of a matrix product, as in
Transformer-XL's shift (Dai et al. 2019, appendix B); nothing is gathered, and nothing scattered in the backward pass.

Shapes: q, k, v (N, H, D) of sequences that stand end to end, with the softmax scale already in q; tables (H, 2M-1, D)
for sequences of up to M tokens, whose row r is for the column that stands r-(M-1) places after its row: in `c2p`
queries are rows; in `p2c`, which has the scale in it too, keys are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kit.attention.chance import STEPS, Draws, flagged, in_steps
from kit.attention.tiles import Tile, all_scores, cut_tiles

CHUNK = {
    "cpu": 1 << 21,
    "cuda": 1 << 28,
}  # bytes of float32 scores at a time; per thread on a CPU, for its cache
BLOCK = {
    "cpu": 128,
    "cuda": 512,
}  # rows of a position term at a time: T + BLOCK - 1 distances instead of 2T - 1
Table = Tensor | None  # None where the attention has no such term


class Attend(torch.autograd.Function):
    """Attention over pieces that stay in a CPU's cache; (N, H, D) in, (N, H, D) out.

    Of the scores only the probabilities are kept for the backward pass, once, with their sign telling which of them
    dropout removed. Softmax is in float32.
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
        """Mixed values; under dropout each probability is 0 with a chance of `dropout`, to the nearest 1/32768.

        Args:
            real: (B, T), False on padding, where all B sequences have T places; None where there is none.
        """
        pieces, steps = _pieces(q, lengths), in_steps(dropout)
        out = v.new_empty(v.shape)
        kept = all_scores(pieces, q) if any(ctx.needs_input_grad) else None
        draws = Draws() if steps else None
        rise = STEPS / (STEPS - steps)
        with torch.autocast(q.device.type, enabled=False):
            padding = None if real is None else _barred(real, torch.float32)
            for piece in pieces:
                qs, ks, vs = (piece.of(x).contiguous() for x in (q, k, v))  # (h, n, T, D)
                scores = _product(qs, ks.mT).float()  # (h, n, T, T)
                _add_positions(scores, qs, ks, _near(c2p, piece), _near(p2c, piece))
                if padding is not None:
                    scores.add_(padding[piece.sequences])
                torch.softmax(scores, -1, out=scores)
                if draws:
                    flagged(scores, draws.signs(scores.shape, steps))
                if kept is not None:
                    piece.of_scores(kept).copy_(scores)
                if draws:
                    scores.clamp_min_(0)
                mixed = _product(scores.to(v.dtype), vs)
                piece.of(out).copy_(mixed.mul_(rise) if draws else mixed)
        ctx.rise, ctx.pieces = rise, pieces
        ctx.save_for_backward(q, k, v, c2p, p2c, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the tables."""
        q, k, v, c2p, p2c, kept, out = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        dc2p, dp2c = _sums(c2p), _sums(p2c)
        inner = (dout * out).sum(
            -1, keepdim=True, dtype=torch.float32
        )  # (N, H, 1): softmax's gradient subtracts it
        with torch.autocast(q.device.type, enabled=False):
            for piece in ctx.pieces:
                qs, ks, vs = (piece.of(x).contiguous() for x in (q, k, v))
                do = piece.of(dout) * ctx.rise
                signed = piece.of_scores(kept).float()  # (h, n, T, T), a copy or not
                used = signed.clamp_min(0)
                piece.of(dv).copy_(_product(used.to(v.dtype).mT, do))
                grad = _product(do, vs.mT).float().mul_(used)
                grad.addcmul_(
                    torch.abs(signed, out=used), piece.of(inner), value=-1
                )  # of the scores
                low = grad.to(q.dtype)
                dqs, dks = _product(low, ks), _product(low.mT, qs)
                tables = (_near(table, piece) for table in (c2p, p2c, dc2p, dp2c))
                _position_grads(low, qs, ks, dqs, dks, *tables)
                piece.of(dq).copy_(dqs)
                piece.of(dk).copy_(dks)
        return dq, dk, dv, _like(dc2p, c2p), _like(dp2c, p2c), None, None, None


class PositionBias(torch.autograd.Function):
    """Both position terms and the padding as one bias (B, H, T, T) for `scaled_dot_product_attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, c2p: Table, p2c: Table, real: Tensor) -> Tensor:
        """The bias in q's type; its rows are laid out so that the memory-efficient kernel takes it as it is."""
        size, length = real.shape
        pieces = _pieces(q, [length] * size)
        bias = q.new_zeros(size, q.shape[1], length, -(-length // 8) * 8)[..., :length]
        with torch.autocast(q.device.type, enabled=False):
            for piece in pieces:
                scores = bias[piece.sequences, piece.heads].transpose(0, 1)
                _add_positions(
                    scores, piece.of(q), piece.of(k), _near(c2p, piece), _near(p2c, piece)
                )
        ctx.pieces = pieces
        ctx.save_for_backward(q, k, c2p, p2c)
        return bias.masked_fill_(
            ~real[:, None, None], torch.finfo(bias.dtype).min
        )  # added, it could overflow in fp16

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and the tables."""
        q, k, c2p, p2c = ctx.saved_tensors
        dq, dk, dc2p, dp2c = torch.zeros_like(q), torch.zeros_like(k), _sums(c2p), _sums(p2c)
        with torch.autocast(q.device.type, enabled=False):
            for piece in ctx.pieces:
                some = grad[piece.sequences, piece.heads].transpose(0, 1)
                tables = (_near(table, piece) for table in (c2p, p2c, dc2p, dp2c))
                _position_grads(some, *(piece.of(x) for x in (q, k, dq, dk)), *tables)
        return dq, dk, _like(dc2p, c2p), _like(dp2c, p2c), None


def _pieces(q: Tensor, lengths: Sequence[int]) -> list[Tile]:
    """As many sequences, or heads of one, as have CHUNK bytes of float32 scores together."""
    room = CHUNK[q.device.type] * (torch.get_num_threads() if q.device.type == "cpu" else 1) // 4
    return cut_tiles(lengths, q.shape[1], room, room)


def _near(table: Table, piece: Tile) -> Table:
    """The rows of a table for the distances in sequences of T tokens, and the piece's heads: (h, 2T-1, D)."""
    if table is None:
        return None
    beyond = (table.shape[1] + 1) // 2 - piece.length
    return table[piece.heads, beyond : table.shape[1] - beyond]


def _add_positions(scores: Tensor, q: Tensor, k: Tensor, c2p: Table, p2c: Table) -> None:
    """Adds the position terms to scores (h, b, T, T) in place; q, k (h, b, T, D), tables (h, 2T-1, D)."""
    for table, rows, into in ((c2p, q, scores), (p2c, k, scores.mT)):
        if table is not None:
            for block, distances in _blocks(rows):
                product = _product_with(
                    rows[:, :, block], table[:, distances].mT
                )  # (h, b, R, T + R - 1)
                into[:, :, block].add_(_shifted(product.to(scores.dtype)))


def _position_grads(
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
    """Adds what the scores' gradient (h, b, T, T) means for q, k and the tables to dq, dk, dc2p and dp2c in place."""
    spread = grad.new_zeros(0)
    for table, rows, of, drows, dtable in ((c2p, q, grad, dq, dc2p), (p2c, k, grad.mT, dk, dp2c)):
        if table is not None:
            for block, distances in _blocks(rows):
                part, near = rows[:, :, block], table[:, distances]
                shape = (*part.shape[:3], near.shape[1])
                if spread.shape != shape:
                    spread = grad.new_zeros(
                        shape
                    )  # all blocks of this shape write to the same places of it
                _shifted(spread).copy_(of[:, :, block])
                drows[:, :, block].add_(_product_with(spread, near))
                flat = spread.flatten(1, 2).mT  # (h, T + R - 1, b * R)
                dtable[:, distances].add_(torch.bmm(flat, part.flatten(1, 2)))


def _blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of R rows, and the T + R - 1 rows of a table that hold their distances to all T columns."""
    length, step = rows.shape[2], BLOCK[rows.device.type]
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield slice(start, stop), slice(length - stop, 2 * length - 1 - start)


def _shifted(product: Tensor) -> Tensor:
    """The view of a block's product (h, b, R, T + R - 1), contiguous, by distance that is by column: (h, b, R, T)."""
    rows, distances = product.shape[2:]
    strides = (*product.stride()[:2], distances - 1, 1)
    return product.as_strided(
        (*product.shape[:3], distances - rows + 1), strides, product.storage_offset() + rows - 1
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product per head and sequence."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _product_with(left: Tensor, table: Tensor) -> Tensor:
    """A matrix product per head, over all sequences at once: (h, b, R, X) with (h, X, Y) -> (h, b, R, Y)."""
    return torch.bmm(left.flatten(1, 2), table).unflatten(1, left.shape[1:3])


def _barred(real: Tensor, dtype: torch.dtype) -> Tensor:
    """What keeps every query off padding when it is added to the scores: (B, T) -> (B, 1, T)."""
    nothing = torch.zeros((), dtype=dtype, device=real.device)
    return torch.where(real, nothing, torch.finfo(dtype).min)[:, None]


def _sums(table: Table) -> Table:
    return None if table is None else torch.zeros_like(table, dtype=torch.float32)


def _like(total: Table, table: Table) -> Table:
    return None if table is None else total.to(table.dtype)
