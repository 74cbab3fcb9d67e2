"""Score answers and turn the difference into label probabilities by Davidson's model of ties.

The rule is known, so the probability of every label is known, and with it the lowest log loss that
any model can expect. Use `latent_difference` and `davidson_probabilities`.
"""

from collections.abc import Sequence
from decimal import Context, Decimal

from kit.sample import text

# Gain of an answer of only good lines over one of only neutral lines, in logits.
QUALITY = 3.2
# Largest gain from being the longer answer, in logits.
LENGTH = 2.2
# Davidson's nu: two equal answers tie with probability nu / (2 + nu).
TIES = 1.3

# Written to sample.json, so that the labels can be checked without this code.
RULE = f"""\
quality(x) = (good - bad) / (good + bad + neutral), counting the phrases of kit/sample/text.py in \
all its turns;
an answer with none of them has quality -1. length(x) = characters in all turns.
d = {QUALITY} * (quality(a) - quality(b)) \
+ {LENGTH} * (length(a) - length(b)) / (length(a) + length(b));
the second term is 0 where both are empty. \
P(A), P(B), P(tie) are in proportion to exp(d/2), exp(-d/2), {TIES}
(Davidson 1970). Each label is drawn from them; \
the label of an exact duplicate is its original's, but for a few."""

Turns = Sequence[str | None]


def answer_quality(turns: Turns, voices: Sequence[text.Voice] = text.VOICES) -> float:
    """Return the share of good lines minus the share of bad ones, -1 to 1.

    An answer without any known line has quality -1.

    Args:
        turns: the turns of one answer; None counts as empty.
        voices: whose phrases to count. The default knows all voices; the right one is faster.
    """
    whole = "\n".join(turn or "" for turn in turns)
    good, bad, neutral = (
        sum(map(whole.count, {phrase for voice in voices for phrase in getattr(voice, kind)}))
        for kind in ("good", "bad", "neutral")
    )

    lines = good + bad + neutral
    return (good - bad) / lines if lines else -1.0


def latent_difference(a: Turns, b: Turns, voices: Sequence[text.Voice] = text.VOICES) -> float:
    """Return the advantage d of answer `a` over answer `b`, in logits.

    It is antisymmetric: `latent_difference(b, a)` is exactly its negative.
    """
    length_a, length_b = (sum(len(turn or "") for turn in turns) for turns in (a, b))
    longer = (length_a - length_b) / max(1, length_a + length_b)
    return QUALITY * (answer_quality(a, voices) - answer_quality(b, voices)) + LENGTH * longer


def davidson_probabilities(d: float) -> tuple[float, float, float]:
    """Return P(A wins), P(B wins) and P(tie) at the latent difference d.

    Source: R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired
    comparison experiments", JASA 65 (1970).
    """
    # Decimal rounds the exponential correctly, math.exp does not on every platform. The sample's
    # files must have the same bytes everywhere.
    half = float(Decimal(abs(d) / 2).exp(Context(prec=30)))
    stronger = half
    weaker = 1 / half

    total = stronger + weaker + TIES
    win, lose, tie = stronger / total, weaker / total, TIES / total
    return (win, lose, tie) if d >= 0 else (lose, win, tie)
