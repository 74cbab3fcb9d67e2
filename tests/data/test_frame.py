"""Check what a judge reads: its frame, the rounds in order, and what is cut from a long row."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.frame import Frame, build_frame, judge_sequences, require_room
from kit.errors import BackboneError, RecipeError
from kit.recipe.spec import EncodeSpec

FRAME = Frame("plain", start=[1], prompt=[2, 2], response_a=[3, 3], response_b=[4, 4], end=[5, 5])
TURNS = st.lists(st.lists(st.integers(10, 99), max_size=30), min_size=1, max_size=4)
SPECS = st.builds(
    EncodeSpec,
    max_tokens=st.integers(FRAME.size + 6, 150),
    prompt_share=st.floats(0.1, 0.5),
    head_share=st.floats(0, 1),
)


def sequences(prompt: list, a: list, b: list, spec: EncodeSpec) -> list[list[int]]:
    return [first for first, *_ in judge_sequences(prompt, [a, b], spec, FRAME)]


def test_rounds_follow_each_other_and_the_question_is_last():
    prompt, a, b = [[10], [11]], [[20], [21]], [[30], [31]]
    found = sequences(prompt, a, b, EncodeSpec(max_tokens=100))
    before = [1, 2, 2, 10, 3, 3, 20, 4, 4, 30, 2, 2, 11, 3, 3, 21, 4, 4, 31, 5, 5]
    swapped = [1, 2, 2, 10, 3, 3, 30, 4, 4, 20, 2, 2, 11, 3, 3, 31, 4, 4, 21, 5, 5]
    assert found == [before, swapped]


@settings(deadline=None, max_examples=100)
@given(TURNS, TURNS, TURNS, SPECS)
def test_a_sequence_keeps_to_the_budget_and_its_frame(
    prompt: list, a: list, b: list, spec: EncodeSpec
):
    for tokens in sequences(prompt, a, b, spec):
        assert len(tokens) <= spec.max_tokens
        assert tokens[:1] == FRAME.start
        assert tokens[-2:] == FRAME.end


@settings(deadline=None, max_examples=100)
@given(TURNS, TURNS, TURNS, SPECS)
def test_swapping_the_answers_swaps_the_sequences(prompt: list, a: list, b: list, spec: EncodeSpec):
    assert sequences(prompt, b, a, spec) == sequences(prompt, a, b, spec)[::-1]


def test_early_rounds_go_first_and_a_long_turn_loses_its_middle():
    answer = [[20] * 30, list(range(30, 50))]
    (tokens, *_) = sequences([[10]], answer, [[60]], EncodeSpec(max_tokens=27))
    kept = [token for token in tokens if 20 <= token < 50]
    assert kept == [*range(30, 38), *range(42, 50)]


def test_a_budget_that_the_frame_fills_is_refused():
    with pytest.raises(RecipeError, match="the plain frame alone takes 9"):
        require_room(FRAME, EncodeSpec(max_tokens=20))
    require_room(FRAME, EncodeSpec(max_tokens=33))


def test_the_frame_names_both_answers_alike_and_is_part_of_the_digest(tiny_judge):
    frame = build_frame("plain", tiny_judge.pretrained)
    texts = [tiny_judge.pretrained.decode(ids) for ids in (frame.response_a, frame.response_b)]
    assert texts == ["\n\n## Response A\n", "\n\n## Response B\n"]
    other = dataclasses.replace(tiny_judge, frame=dataclasses.replace(frame, end=[7]))
    assert other.digest != tiny_judge.digest


def test_a_tokenizer_without_a_chat_template_is_refused_in_a_whole_sentence(tiny_judge):
    with pytest.raises(BackboneError) as caught:
        build_frame("chat", tiny_judge.pretrained)
    assert "the tokenizer has no chat template" in caught.value.problem
    assert caught.value.hint == "Set encode.frame=plain."


def test_a_chat_template_goes_around_the_whole_message(tiny_judge):
    tiny_judge.pretrained.chat_template = (
        "{% for message in messages %}<user>{{ message.content }}</user>{% endfor %}<model>"
    )
    frame = build_frame("chat", tiny_judge.pretrained)
    decode = tiny_judge.pretrained.decode
    assert decode(frame.start).startswith("<user>Two assistants")
    assert decode(frame.end).endswith("</user><model>")
