"""Check that tiles cover all of attention once, and that none is larger than allowed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.attention.tiles import cut_tiles, empty_scores


@settings(deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 5, 5, 9]), min_size=1, max_size=8),
    heads=st.integers(1, 5),
    max_scores=st.integers(0, 500),
    joined=st.floats(0, 1),
)
def test_tiles_are_all_tokens_and_heads_and_scores_once(
    lengths: list[int], heads: int, max_scores: int, joined: float
):
    tiles = cut_tiles(lengths, heads, max_scores, int(max_scores * joined))
    x = torch.zeros(sum(lengths), heads, 3)
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    scores = empty_scores(tiles, x).zero_()
    before = 0
    for tile in tiles:
        tile.of(x).add_(1)
        tile.of_scores(scores).add_(1)
        own_lengths = lengths[tile.sequences]
        assert set(own_lengths) == {tile.length}
        assert numbers[tile.tokens].unique().tolist() == list(
            range(*tile.sequences.indices(len(lengths)))
        )
        own_heads = tile.heads.stop - tile.heads.start
        assert tile.of(x).shape == (own_heads, len(own_lengths), tile.length, 3)
        assert tile.of_scores(scores).shape == (
            own_heads,
            len(own_lengths),
            tile.length,
            tile.length,
        )
        count = own_heads * len(own_lengths) * tile.length**2
        assert tile.scores == slice(before, before + count)
        assert count <= max_scores or (own_heads, len(own_lengths)) == (1, 1)
        before += count
    assert (x == 1).all()
    assert (scores == 1).all()
    assert len(scores) == heads * sum(n * n for n in lengths)


def test_short_sequences_of_one_length_share_a_tile_and_long_ones_do_not():
    assert [
        tile.sequences
        for tile in cut_tiles([8, 8, 8, 2, 2, 2], 2, max_scores=200, joined_scores=20)
    ] == [
        slice(0, 1),
        slice(1, 2),
        slice(2, 3),
        slice(3, 5),
        slice(5, 6),
    ]
    assert [tile.heads for tile in cut_tiles([10], 3, max_scores=200, joined_scores=200)] == [
        slice(0, 2),
        slice(2, 3),
    ]
