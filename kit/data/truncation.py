"""Lay out the tokens of a row as an encoder's sequences within a token budget. Use `LAYOUTS`.

A decoder's sequences are in `data.frame`, and share the budget by the same `split_budget`. One side
is `[CLS] prompt [SEP] response [SEP]`; the turns of a conversation are joined by `[SEP]`
too. What does not fit is cut: first the early turns, then the middle of a turn that is too long
on its own. The last turns, and the beginnings and ends of turns, say most about an answer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kit.recipe.spec import EncodeSpec

# The turns of one text, each a list of tokens.
Turns = Sequence[list[int]]

# Tokens that are not text: CLS and two SEP; CLS, two SEP before each answer and one at the end.
SIDE_FRAME = 3
CROSS_FRAME = 6


class Overhead(NamedTuple):
    """Tokens that a text costs beyond its turns: for its first kept turn, and for each further."""

    first: int
    further: int


# A single SEP joins two turns.
JOINED = Overhead(first=0, further=1)


class Retention(NamedTuple):
    """How many tokens of the texts of a sequence, or of many, there are and are kept."""

    prompt: int
    prompt_kept: int
    answer: int
    answer_kept: int


class TruncatedSequence(NamedTuple):
    """One sequence as its two segments.

    Attributes:
        whole: tokens that prompt and answer would have as a side without a budget. For a cross
            sequence, those of its first answer.
        lost: whether tokens were cut.
        retention: of the prompt and of that answer.
    """

    first: list[int]
    second: list[int]
    whole: int
    lost: bool
    retention: Retention


def side_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """Yield one sequence for each answer, with the prompt and the answer as its segments."""
    for answer in answers:
        room = spec.max_tokens - SIDE_FRAME
        kept, (response,), lost = split_budget(prompt, [answer], room, spec)
        first = [cls, *_join(kept, sep), sep]
        second = [*_join(response, sep), sep]
        retention = count_kept(prompt, kept, answer, response)
        yield TruncatedSequence(first, second, side_length(prompt, answer), lost, retention)


def order_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """Yield prompt and both answers as one sequence, once in each order of the answers.

    What is kept of each text is the same in both. Two SEP stand before an answer, as RoBERTa has
    them between texts, because a single SEP joins turns. The second answer alone is the second
    segment: the model has to see which answer a token belongs to.
    """
    room = spec.max_tokens - CROSS_FRAME
    kept, kept_answers, lost = split_budget(prompt, answers, room, spec)
    joined = [_join(turns, sep) for turns in kept_answers]

    for number, answer in enumerate(answers):
        start = [cls, *_join(kept, sep), sep, sep, *joined[number], sep, sep]
        retention = count_kept(prompt, kept, answer, kept_answers[number])
        whole = side_length(prompt, answer)
        second = [*joined[1 - number], sep]
        yield TruncatedSequence(start, second, whole, lost, retention)


Layout = Callable[..., Iterator[TruncatedSequence]]
LAYOUTS: dict[str, Layout] = {"siamese": side_sequences, "cross": order_sequences}


def split_budget(
    prompt: Turns,
    answers: Sequence[Turns],
    room: int,
    spec: EncodeSpec,
    overhead: Overhead = JOINED,
) -> tuple[Turns, list[Turns], bool]:
    """Return the turns of prompt and answers that fit in `room`, and whether any were cut.

    If not all fit, the prompt keeps what the answers leave free, and at least its share of the
    room. Two answers get half of the rest each, and one gets what the other leaves free.

    Args:
        overhead: what each of the texts costs beyond its turns.
    """
    prompt_length = _length(prompt, overhead)
    lengths = [_length(answer, overhead) for answer in answers]
    if prompt_length + sum(lengths) <= room:
        return prompt, list(answers), False

    beyond_prompt = max(room - prompt_length, room - int(room * spec.prompt_share))
    rest = min(sum(lengths), beyond_prompt)
    half = rest // len(lengths)
    shares = [min(length, max(half, rest - (sum(lengths) - length))) for length in lengths]

    kept = _truncate(prompt, min(prompt_length, room - sum(shares)), spec, overhead)
    kept_answers = [
        _truncate(answer, share, spec, overhead)
        for answer, share in zip(answers, shares, strict=True)
    ]
    return kept, kept_answers, True


def count_kept(prompt: Turns, kept: Turns, answer: Turns, kept_answer: Turns) -> Retention:
    """Return what is kept of a prompt and an answer."""
    return Retention(*(sum(map(len, turns)) for turns in (prompt, kept, answer, kept_answer)))


def side_length(prompt: Turns, answer: Turns) -> int:
    """Return the tokens that prompt and answer would have as a side without a budget."""
    return SIDE_FRAME + _length(prompt, JOINED) + _length(answer, JOINED)


def _truncate(turns: Turns, room: int, spec: EncodeSpec, overhead: Overhead) -> Turns:
    """Return the last turns that fit in `room`; the first of them may lose its middle."""
    kept: list[list[int]] = []
    for turn in reversed(turns):
        free = room - (overhead.further if kept else overhead.first)
        if len(turn) > free:
            if free > 0:
                head = round(free * spec.head_share)
                kept.append(turn[:head] + turn[len(turn) - (free - head) :])
            break

        kept.append(turn)
        room = free - len(turn)
    return kept[::-1]


def _length(turns: Turns, overhead: Overhead) -> int:
    if not turns:
        return 0
    return sum(map(len, turns)) + overhead.first + overhead.further * (len(turns) - 1)


def _join(turns: Turns, sep: int) -> list[int]:
    joined = list(turns[0]) if turns else []

    for turn in turns[1:]:
        joined.append(sep)
        joined += turn
    return joined
