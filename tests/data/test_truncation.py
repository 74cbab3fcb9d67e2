"""Check that the cross layout shares one budget fairly and is symmetric in the answers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.truncation import (
    CROSS_FRAME,
    SIDE_FRAME,
    TruncatedSequence,
    order_sequences,
    side_sequences,
)
from kit.recipe.spec import EncodeSpec

CLS, SEP = 1, 2
TURNS = st.lists(st.lists(st.integers(10, 99), max_size=30), min_size=1, max_size=4)
SPECS = st.builds(
    EncodeSpec,
    max_tokens=st.integers(8, 150),
    prompt_share=st.floats(0, 1),
    head_share=st.floats(0, 1),
)


def need(turns: list[list[int]]) -> int:
    return len(joined(turns))


def joined(turns: list[list[int]]) -> list[int]:
    return [token for turn in turns for token in (*turn, SEP)][:-1]


def cross(prompt: list, a: list, b: list, spec: EncodeSpec) -> list[TruncatedSequence]:
    return list(order_sequences(prompt, [a, b], spec, CLS, SEP))


def apart(
    prompt: list, a: list, b: list, spec: EncodeSpec
) -> tuple[list[int], list[int], list[int]]:
    """Return what is kept of prompt, A and B; the last answer is the second segment."""
    (with_a, of_b, *_), (_, of_a, *_) = cross(prompt, a, b, spec)
    kept_a = of_a[:-1]
    kept_b = of_b[:-1]
    return with_a[1 : len(with_a) - len(kept_a) - 4], kept_a, kept_b


@settings(deadline=None, max_examples=150)
@given(TURNS, TURNS, TURNS, SPECS)
def test_a_sequence_is_prompt_and_both_answers_within_one_budget(
    prompt: list, a: list, b: list, spec: EncodeSpec
):
    kept, kept_a, kept_b = apart(prompt, a, b, spec)
    sequences = cross(prompt, a, b, spec)
    found = [sequence.first + sequence.second for sequence in sequences]
    assert found == [
        [CLS, *kept, SEP, SEP, *one, SEP, SEP, *other, SEP]
        for one, other in ((kept_a, kept_b), (kept_b, kept_a))
    ]
    assert len(found[0]) <= spec.max_tokens

    sized = [SIDE_FRAME + need(prompt) + need(answer) for answer in (a, b)]
    sides = side_sequences(prompt, [a, b], spec, CLS, SEP)
    assert [sequence.whole for sequence in sequences] == sized
    assert [sequence.whole for sequence in sides] == sized

    whole = CROSS_FRAME + need(prompt) + need(a) + need(b)
    assert [sequence.lost for sequence in sequences] == [whole > spec.max_tokens] * 2
    if whole > spec.max_tokens:
        # Unused are at most one SEP with nothing before it for each text, and one token.
        assert len(found[0]) >= spec.max_tokens - 4
    else:
        assert (kept, kept_a, kept_b) == (joined(prompt), joined(a), joined(b))


@settings(deadline=None, max_examples=150)
@given(TURNS, TURNS, TURNS, SPECS)
def test_swapping_the_answers_swaps_the_sequences(prompt: list, a: list, b: list, spec: EncodeSpec):
    assert cross(prompt, b, a, spec) == cross(prompt, a, b, spec)[::-1]


@settings(deadline=None, max_examples=150)
@given(TURNS, TURNS, TURNS, SPECS)
def test_neither_answer_is_cut_for_the_other_below_its_half(
    prompt: list, a: list, b: list, spec: EncodeSpec
):
    """An answer has half of what the prompt's share leaves; the prompt has its share."""
    kept, kept_a, kept_b = apart(prompt, a, b, spec)
    room = spec.max_tokens - CROSS_FRAME
    for_prompt = int(room * spec.prompt_share)
    half = (room - for_prompt) // 2
    assert len(kept) >= min(need(prompt), for_prompt) - 1
    assert len(kept_a) >= min(need(a), half) - 1
    assert len(kept_b) >= min(need(b), half) - 1


def test_a_long_answer_gets_what_a_short_one_leaves():
    prompt, short, long = [[9]], [[10] * 5], [list(range(100, 200))]
    kept, of_short, of_long = apart(prompt, short, long, EncodeSpec(56, 0.25, 0.5))
    assert (kept, of_short) == ([9], [10] * 5)
    # Head and tail of the 56 - 6 - 1 - 5 tokens that are left.
    assert of_long == [*range(100, 122), *range(178, 200)]


def test_two_long_answers_get_the_same_room():
    prompt, a, b = [[9] * 10], [list(range(100, 200))], [list(range(200, 500))]
    kept, of_a, of_b = apart(prompt, a, b, EncodeSpec(47, 0.25, 1.0))
    assert (of_a, of_b) == ([*range(100, 115)], [*range(200, 215)])
    # One of them is the token that two answers cannot share.
    assert len(kept) == 10


@settings(deadline=None, max_examples=60)
@given(TURNS, TURNS, SPECS)
def test_equal_answers_make_equal_sequences(prompt: list, answer: list, spec: EncodeSpec):
    first, second = cross(prompt, answer, answer, spec)
    assert first == second
    one, other = side_sequences(prompt, [answer, answer], spec, CLS, SEP)
    assert one == other


def test_early_turns_of_an_answer_are_cut_first():
    turns = [[10] * 10, [11] * 10, [12] * 10]
    lengths = [len(apart([[9]], turns, turns, EncodeSpec(size, 0.0))[1]) for size in range(12, 80)]
    assert (np.diff(lengths) >= 0).all()
    assert apart([[9]], turns, turns, EncodeSpec(60, 0.0))[1][-21:] == [11] * 10 + [SEP] + [12] * 10
