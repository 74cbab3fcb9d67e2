"""DeBERTa's disentangled attention as two functions with gradients of their own: fast on a CPU, and a bias for a GPU.

A score is q_i·k_j + q_i·a[i-j] + k_j·b[i-j] (He et al. 2021, eq. 4): content, content to position, position to content.
With one row per distance in the tables a and b, a position term is a strided view of a matrix product, as in
Transformer-XL's shift (Dai et al. 2019, appendix B); nothing is gathered, and nothing scattered in the backward pass.

Shapes: q, k, v (B, T, H, D) with the softmax scale already in q; tables (H, 2T-1, D), whose row r is for the column
that stands r-(T-1) places after its row: in `c2p` queries are rows; in `p2c`, which has the scale in it too, keys are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kit.model.chance import STEPS, Draws, flagged, in_steps

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}  # bytes of float32 scores at a time; per thread on a CPU, for its cache
BLOCK = {"cpu": 128, "cuda": 512}  # rows of a position term at a time: T + BLOCK - 1 distances instead of 2T - 1
Table = Tensor | None  # None where the attention has no such term


class Attend(torch.autograd.Function):
    """Attention over chunks of sequences and heads that stay in a CPU's cache; (B, T, H, D) in, (B, T, H, D) out.

    Of the scores only the probabilities are kept for the backward pass, once, with their sign telling which of them
    dropout removed. `real` (B, T) is False on padding, None where there is none. Softmax is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, c2p: Table, p2c: Table, real: Table, dropout: float
    ) -> Tensor:
        """Mixed values; under dropout each probability is 0 with a chance of `dropout`, to the nearest 1/32768."""
        out, kept = torch.empty_like(v), None
        steps = in_steps(dropout)
        rise = STEPS / (STEPS - steps)
        draws = Draws() if steps else None
        if any(ctx.needs_input_grad):
            kept = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[1])  # (B, H, T, T)
        with torch.autocast(q.device.type, enabled=False):
            padding = None if real is None else _barred(real, torch.float32)
            for rows, heads in _chunks(q):
                qs, ks, vs = (_part(x, rows, heads).contiguous() for x in (q, k, v))  # (h, b, T, D)
                scores = _product(qs, ks.mT).float()  # (h, b, T, T)
                _add_positions(scores, qs, ks, _of(c2p, heads), _of(p2c, heads))
                if padding is not None:
                    scores.add_(padding[rows])
                torch.softmax(scores, -1, out=scores)
                if draws:
                    flagged(scores, draws.signs(scores.shape, steps))
                if kept is not None:
                    kept[rows, heads] = scores.transpose(0, 1)
                if draws:
                    scores.clamp_min_(0)
                mixed = _product(scores.to(v.dtype), vs)
                _part(out, rows, heads).copy_(mixed.mul_(rise) if draws else mixed)
        ctx.rise = rise
        ctx.save_for_backward(q, k, v, c2p, p2c, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the tables."""
        q, k, v, c2p, p2c, kept, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dc2p, dp2c = _sums(c2p), _sums(p2c)
        inner = (dout * out).sum(-1, dtype=torch.float32)  # (B, T, H): what softmax's gradient subtracts
        with torch.autocast(q.device.type, enabled=False):
            for rows, heads in _chunks(q):
                qs, ks, vs = (_part(x, rows, heads).contiguous() for x in (q, k, v))
                do = _part(dout, rows, heads) * ctx.rise
                signed = kept[rows, heads].transpose(0, 1).float()  # (h, b, T, T)
                used = signed.clamp_min(0)
                _part(dv, rows, heads).copy_(_product(used.to(v.dtype).mT, do))
                grad = _product(do, vs.mT).float().mul_(used)
                below = inner[rows, :, heads].permute(2, 0, 1)[..., None]
                grad.addcmul_(torch.abs(signed, out=used), below, value=-1)  # of the scores
                low = grad.to(q.dtype)
                dqs, dks = _product(low, ks), _product(low.mT, qs)
                _position_grads(
                    low, qs, ks, _of(c2p, heads), _of(p2c, heads), dqs, dks, _of(dc2p, heads), _of(dp2c, heads)
                )
                _part(dq, rows, heads).copy_(dqs)
                _part(dk, rows, heads).copy_(dks)
        return dq, dk, dv, _like(dc2p, c2p), _like(dp2c, p2c), None, None


class PositionBias(torch.autograd.Function):
    """Both position terms and the padding as one bias (B, H, T, T) for `scaled_dot_product_attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, c2p: Table, p2c: Table, real: Tensor) -> Tensor:
        """The bias in q's type; its rows are laid out so that the memory-efficient kernel takes it as it is."""
        size, length, heads, _ = q.shape
        bias = q.new_zeros(size, heads, length, -(-length // 8) * 8)[..., :length]
        with torch.autocast(q.device.type, enabled=False):
            for rows, some in _chunks(q):
                qs, ks = _part(q, rows, some), _part(k, rows, some)
                _add_positions(bias[rows, some].transpose(0, 1), qs, ks, _of(c2p, some), _of(p2c, some))
        ctx.save_for_backward(q, k, c2p, p2c)
        return bias.masked_fill_(~real[:, None, None], torch.finfo(bias.dtype).min)  # added, it could overflow in fp16

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and the tables."""
        q, k, c2p, p2c = ctx.saved_tensors
        dq, dk, dc2p, dp2c = torch.zeros_like(q), torch.zeros_like(k), _sums(c2p), _sums(p2c)
        with torch.autocast(q.device.type, enabled=False):
            for rows, heads in _chunks(q):
                qs, ks = _part(q, rows, heads), _part(k, rows, heads)
                dqs, dks = _part(dq, rows, heads), _part(dk, rows, heads)
                some = grad[rows, heads].transpose(0, 1)
                _position_grads(
                    some, qs, ks, _of(c2p, heads), _of(p2c, heads), dqs, dks, _of(dc2p, heads), _of(dp2c, heads)
                )
        return dq, dk, _like(dc2p, c2p), _like(dp2c, p2c), None


def _chunks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Sequences and heads whose scores are of CHUNK bytes together: some heads of one sequence, or all of several."""
    size, length, heads, _ = q.shape
    room = CHUNK[q.device.type] * (torch.get_num_threads() if q.device.type == "cpu" else 1)
    fits = max(1, room // (4 * length * length))
    many, some = max(1, fits // heads), min(heads, fits)
    for row in range(0, size, many):
        for head in range(0, heads, some):
            yield slice(row, row + many), slice(head, head + some)


def _add_positions(scores: Tensor, q: Tensor, k: Tensor, c2p: Table, p2c: Table) -> None:
    """Adds the position terms to scores (h, b, T, T) in place; q, k (h, b, T, D), tables (h, 2T-1, D)."""
    for table, rows, into in ((c2p, q, scores), (p2c, k, scores.mT)):
        if table is not None:
            for block, distances in _blocks(rows):
                product = _product_with(rows[:, :, block], table[:, distances].mT)  # (h, b, R, T + R - 1)
                into[:, :, block].add_(_shifted(product.to(scores.dtype)))


def _position_grads(
    grad: Tensor, q: Tensor, k: Tensor, c2p: Table, p2c: Table, dq: Tensor, dk: Tensor, dc2p: Table, dp2c: Table
) -> None:
    """Adds what the scores' gradient (h, b, T, T) means for q, k and the tables to dq, dk, dc2p and dp2c in place."""
    spread = grad.new_zeros(0)
    for table, rows, of, drows, dtable in ((c2p, q, grad, dq, dc2p), (p2c, k, grad.mT, dk, dp2c)):
        if table is not None:
            for block, distances in _blocks(rows):
                part, near = rows[:, :, block], table[:, distances]
                shape = (*part.shape[:3], near.shape[1])
                if spread.shape != shape:
                    spread = grad.new_zeros(shape)  # all blocks of this shape write to the same places of it
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
    return product.as_strided((*product.shape[:3], distances - rows + 1), strides, product.storage_offset() + rows - 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product per head and sequence."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _product_with(left: Tensor, table: Tensor) -> Tensor:
    """A matrix product per head, over all sequences at once: (h, b, R, X) with (h, X, Y) -> (h, b, R, Y)."""
    return torch.bmm(left.flatten(1, 2), table).unflatten(1, left.shape[1:3])


def _part(x: Tensor, rows: slice, heads: slice) -> Tensor:
    """A chunk with heads first: (B, T, H, D) -> (h, b, T, D), a view."""
    return x[rows, :, heads].permute(2, 0, 1, 3)


def _barred(real: Tensor, dtype: torch.dtype) -> Tensor:
    """What keeps every query off padding when it is added to the scores: (B, T) -> (B, 1, T)."""
    nothing = torch.zeros((), dtype=dtype, device=real.device)
    return torch.where(real, nothing, torch.finfo(dtype).min)[:, None]


def _of(table: Table, heads: slice) -> Table:
    return None if table is None else table[heads]


def _sums(table: Table) -> Table:
    return None if table is None else torch.zeros_like(table, dtype=torch.float32)


def _like(total: Table, table: Table) -> Table:
    return None if table is None else total.to(table.dtype)
