"""The sample's planted judge: a rule on the text of two answers, and honest noise by Davidson's model of ties.

The rule is known, so the probability of every label is, and with it the lowest log loss any model can expect.
"""

from collections.abc import Sequence
from decimal import Context, Decimal

from kit.sample import text

QUALITY = 3.2  # what a wholly good answer gains on one without good or bad lines, in logits of the latent difference
LENGTH = 2.2  # what an answer gains at most by being longer
TIES = 1.3  # Davidson's nu: two equal answers tie with probability nu / (2 + nu)

RULE = f"""\
quality(x) = (good - bad) / (good + bad + neutral), counting the phrases of kit/sample/text.py in all its turns;
an answer with none of them has quality -1. length(x) = characters in all turns.
d = {QUALITY} * (quality(a) - quality(b)) + {LENGTH} * (length(a) - length(b)) / (length(a) + length(b));
the second term is 0 where both are empty. P(A), P(B), P(tie) are in proportion to exp(d/2), exp(-d/2), {TIES}
(Davidson 1970). Each label is drawn from them; the label of an exact duplicate is its original's, but for a few."""

Turns = Sequence[str | None]


def answer_quality(turns: Turns, voices: Sequence[text.Voice] = text.VOICES) -> float:
    """The share of good lines less that of bad ones, -1 .. 1; -1 for an answer without a line.

    Args:
        voices: whose phrases to count; the default knows all of them, one is faster where it is known.
    """
    whole = "\n".join(turn or "" for turn in turns)
    good, bad, neutral = (
        sum(map(whole.count, {phrase for voice in voices for phrase in getattr(voice, kind)}))
        for kind in ("good", "bad", "neutral")
    )
    lines = good + bad + neutral
    return (good - bad) / lines if lines else -1.0


def quality_difference(a: Turns, b: Turns, voices: Sequence[text.Voice] = text.VOICES) -> float:
    """The latent difference d between two answers to one prompt; `difference(b, a)` is its negative."""
    length_a, length_b = (sum(len(turn or "") for turn in turns) for turns in (a, b))
    longer = (length_a - length_b) / max(1, length_a + length_b)
    return QUALITY * (answer_quality(a, voices) - answer_quality(b, voices)) + LENGTH * longer


def davidson_probabilities(d: float) -> tuple[float, float, float]:
    """P(A wins), P(B wins), P(tie) at the latent difference d.

    Source: R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison
    experiments", JASA 65 (1970). The exponential is rounded correctly, which `math.exp` is not everywhere, so that
    the files have the same bytes on every platform.
    """
    half = float(Decimal(abs(d) / 2).exp(Context(prec=30)))
    stronger, weaker = half, 1 / half
    total = stronger + weaker + TIES
    win, lose, tie = stronger / total, weaker / total, TIES / total
    return (win, lose, tie) if d >= 0 else (lose, win, tie)
