"""Lay out the tokens of a row as sequences within a token budget. Use `LAYOUTS`.

One side is `[CLS] prompt [SEP] response [SEP]`; the turns of a conversation are joined by `[SEP]`
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


class TruncatedSequence(NamedTuple):
    """One sequence as its two segments.

    Attributes:
        whole: tokens that prompt and answer would have as a side without a budget. For a cross
            sequence, those of its first answer.
        lost: whether tokens were cut.
    """

    first: list[int]
    second: list[int]
    whole: int
    lost: bool


def side_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """Yield one sequence for each answer, with the prompt and the answer as its segments."""
    for answer in answers:
        room = spec.max_tokens - SIDE_FRAME
        kept, (response,), lost = split_budget(prompt, [answer], room, spec, sep)
        first = [cls, *kept, sep]
        yield TruncatedSequence(first, [*response, sep], _side_length(prompt, answer), lost)


def order_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """Yield prompt and both answers as one sequence, once in each order of the answers.

    What is kept of each text is the same in both. Two SEP stand before an answer, as RoBERTa has
    them between texts, because a single SEP joins turns. The second answer alone is the second
    segment: the model has to see which answer a token belongs to.
    """
    kept, (a, b), lost = split_budget(prompt, answers, spec.max_tokens - CROSS_FRAME, spec, sep)

    for answer, first, second in zip(answers, (a, b), (b, a), strict=True):
        start = [cls, *kept, sep, sep, *first, sep, sep]
        yield TruncatedSequence(start, [*second, sep], _side_length(prompt, answer), lost)


Layout = Callable[[Turns, Sequence[Turns], EncodeSpec, int, int], Iterator[TruncatedSequence]]
LAYOUTS: dict[str, Layout] = {"siamese": side_sequences, "cross": order_sequences}


def split_budget(
    prompt: Turns, answers: Sequence[Turns], room: int, spec: EncodeSpec, sep: int
) -> tuple[list[int], list[list[int]], bool]:
    """Return the tokens of prompt and answers that fit in `room`, and whether any were cut.

    If not all fit, the prompt keeps what the answers leave free, and at least its share of the
    room. Two answers get half of the rest each, and one gets what the other leaves free.
    """
    prompt_length = _length(prompt)
    lengths = [_length(answer) for answer in answers]
    if prompt_length + sum(lengths) <= room:
        return _join(prompt, sep), [_join(answer, sep) for answer in answers], False

    beyond_prompt = max(room - prompt_length, room - int(room * spec.prompt_share))
    rest = min(sum(lengths), beyond_prompt)
    half = rest // len(lengths)
    shares = [min(length, max(half, rest - (sum(lengths) - length))) for length in lengths]

    kept = _truncate(prompt, min(prompt_length, room - sum(shares)), spec, sep)
    kept_answers = [
        _truncate(answer, share, spec, sep) for answer, share in zip(answers, shares, strict=True)
    ]
    return kept, kept_answers, True


def _truncate(turns: Turns, room: int, spec: EncodeSpec, sep: int) -> list[int]:
    """Return the last turns that fit in `room`; the first of them may lose its middle."""
    kept: list[list[int]] = []
    for turn in reversed(turns):
        # One SEP joins the turn to what follows.
        free = room - bool(kept)
        if len(turn) > free:
            if free > 0:
                head = round(free * spec.head_share)
                kept.append(turn[:head] + turn[len(turn) - (free - head) :])
            break

        kept.append(turn)
        room = free - len(turn)
    return _join(kept[::-1], sep)


def _side_length(prompt: Turns, answer: Turns) -> int:
    return SIDE_FRAME + _length(prompt) + _length(answer)


def _length(turns: Turns) -> int:
    return sum(map(len, turns)) + max(0, len(turns) - 1)


def _join(turns: Turns, sep: int) -> list[int]:
    joined = list(turns[0]) if turns else []

    for turn in turns[1:]:
        joined.append(sep)
        joined += turn
    return joined
