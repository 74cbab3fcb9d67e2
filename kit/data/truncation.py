"""A row's sequences within their budget of tokens: what stands where, and what is cut where not everything fits.

One side is `[CLS] prompt [SEP] response [SEP]`; the turns of a conversation are joined by `[SEP]` too. What does not
fit is cut where it hurts least: early turns first, then the middle of a turn that is too long by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kit.recipe.spec import EncodeSpec

Turns = Sequence[list[int]]  # of one text, each turn its tokens
SIDE_FRAME = 3  # CLS and two SEP
CROSS_FRAME = 6  # CLS, two SEP before each answer, one at the end


class TruncatedSequence(NamedTuple):
    """One sequence: its two segments, and whether tokens were lost.

    whole: tokens that prompt and answer would have as a side without a budget; of a cross sequence, its first answer.
    """

    first: list[int]
    second: list[int]
    whole: int
    lost: bool


def side_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """One sequence for each answer, the prompt its first segment and the answer its second."""
    for answer in answers:
        kept, (response,), lost = split_budget(
            prompt, [answer], spec.max_tokens - SIDE_FRAME, spec, sep
        )
        yield TruncatedSequence([cls, *kept, sep], [*response, sep], _whole(prompt, answer), lost)


def order_sequences(
    prompt: Turns, answers: Sequence[Turns], spec: EncodeSpec, cls: int, sep: int
) -> Iterator[TruncatedSequence]:
    """Prompt and both answers in one sequence, once in each order; what is kept of each is the same in both.

    Before an answer stand two SEP, as RoBERTa has them between texts: a single one only joins turns. The second
    answer alone is the second segment, because which answer a token belongs to is what has to be told apart.
    """
    kept, (a, b), lost = split_budget(prompt, answers, spec.max_tokens - CROSS_FRAME, spec, sep)
    for answer, first, second in zip(answers, (a, b), (b, a), strict=True):
        yield TruncatedSequence(
            [cls, *kept, sep, sep, *first, sep, sep], [*second, sep], _whole(prompt, answer), lost
        )


LAYOUTS: dict[
    str, Callable[[Turns, Sequence[Turns], EncodeSpec, int, int], Iterator[TruncatedSequence]]
] = {
    "siamese": side_sequences,
    "cross": order_sequences,
}


def split_budget(
    prompt: Turns, answers: Sequence[Turns], room: int, spec: EncodeSpec, sep: int
) -> tuple[list[int], list[list[int]], bool]:
    """The tokens of a prompt and of the answers beside it within `room`, and whether any were lost.

    When not all fit, the prompt keeps what the answers leave free, and at least its share of the room. Two answers
    have half of the rest each, and what one leaves free is the other's.
    """
    need, needs = _length(prompt), [_length(answer) for answer in answers]
    if need + sum(needs) <= room:
        return _join(prompt, sep), [_join(answer, sep) for answer in answers], False
    rest = min(sum(needs), max(room - need, room - int(room * spec.prompt_share)))
    shares = [min(each, max(rest // len(needs), rest - (sum(needs) - each))) for each in needs]
    kept = _fit(prompt, min(need, room - sum(shares)), spec, sep)
    return (
        kept,
        [_fit(answer, share, spec, sep) for answer, share in zip(answers, shares, strict=True)],
        True,
    )


def _fit(turns: Turns, room: int, spec: EncodeSpec, sep: int) -> list[int]:
    """The last turns that fit in `room`; the first of these that does not keeps its head and its tail."""
    kept: list[list[int]] = []
    for turn in reversed(turns):
        free = room - bool(kept)  # one SEP joins it to what follows
        if len(turn) > free:
            if free > 0:
                head = round(free * spec.head_share)
                kept.append(turn[:head] + turn[len(turn) - (free - head) :])
            break
        kept.append(turn)
        room = free - len(turn)
    return _join(kept[::-1], sep)


def _whole(prompt: Turns, answer: Turns) -> int:
    return SIDE_FRAME + _length(prompt) + _length(answer)


def _length(turns: Turns) -> int:
    return sum(map(len, turns)) + max(0, len(turns) - 1)


def _join(turns: Turns, sep: int) -> list[int]:
    joined = list(turns[0]) if turns else []
    for turn in turns[1:]:
        joined.append(sep)
        joined += turn
    return joined
