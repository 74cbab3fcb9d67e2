"""Pieces of attention: together they are all of it, each once, and none is larger than it may be."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.attention.tiles import cut_tiles, empty_scores


@settings(deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 5, 5, 9]), min_size=1, max_size=8),
    heads=st.integers(1, 5),
    room=st.integers(0, 500),
    joined=st.floats(0, 1),
)
def test_pieces_are_all_tokens_and_heads_and_scores_once(
    lengths: list[int], heads: int, room: int, joined: float
):
    pieces = cut_tiles(lengths, heads, room, int(room * joined))
    x, numbers = (
        torch.zeros(sum(lengths), heads, 3),
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
    )
    scores, before = empty_scores(pieces, x), 0
    scores.zero_()
    for piece in pieces:
        piece.of(x).add_(1)
        piece.of_scores(scores).add_(1)
        several = lengths[piece.sequences]
        assert set(several) == {piece.length}
        assert numbers[piece.tokens].unique().tolist() == list(
            range(*piece.sequences.indices(len(lengths)))
        )
        some = piece.heads.stop - piece.heads.start
        assert piece.of(x).shape == (some, len(several), piece.length, 3)
        assert piece.of_scores(scores).shape == (some, len(several), piece.length, piece.length)
        count = some * len(several) * piece.length**2
        assert piece.scores == slice(before, before + count)
        assert count <= room or (some, len(several)) == (1, 1)
        before += count
    assert (x == 1).all()
    assert (scores == 1).all()
    assert len(scores) == heads * sum(n * n for n in lengths)


def test_short_sequences_of_one_length_share_a_piece_and_long_ones_do_not():
    assert [
        piece.sequences
        for piece in cut_tiles([8, 8, 8, 2, 2, 2], 2, max_scores=200, joined_scores=20)
    ] == [
        slice(0, 1),
        slice(1, 2),
        slice(2, 3),
        slice(3, 5),
        slice(5, 6),
    ]
    assert [piece.heads for piece in cut_tiles([10], 3, max_scores=200, joined_scores=200)] == [
        slice(0, 2),
        slice(2, 3),
    ]
