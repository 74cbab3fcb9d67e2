"""Make texts of unknown origin safe to display: name characters that hide or reorder other text.

Use `make_visible` for a text, `one_line` for a name, `fold_text` for a long text.
"""

import re

# Controls except line feed and tab, marks that change the direction of text, zero-width and other
# invisible characters, and tags. Joiners (U+200C, U+200D) and variation selectors stay, because
# emoji and several scripts need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b"
    "\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)

PREVIEW_LENGTH = 480  # characters that are shown at once
MAX_LENGTH = 12_000  # characters that are shown at all


def make_visible(text: str) -> str:
    """Replace each hidden character by its code point in brackets, such as ⟨U+202E⟩."""
    return HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def one_line(text: str) -> str:
    """Make a name's hidden characters visible, and put it on one line."""
    return " ".join(make_visible(text).split())


def fold_text(turns: tuple[str, ...]) -> tuple[str, str, int]:
    """Make a text's hidden characters visible, and fold it if it is long.

    Returns:
        The beginning, the whole text where that is longer (else nothing), and the number of
        characters that were cut from the whole.
    """
    if len(turns) == 1:
        text = make_visible(turns[0])
    else:
        numbered = enumerate(turns, 1)
        text = "\n\n".join(f"[turn {number}]\n{make_visible(turn)}" for number, turn in numbered)

    if len(text) <= PREVIEW_LENGTH:
        return text, "", 0
    omitted = max(0, len(text) - MAX_LENGTH)
    return text[:PREVIEW_LENGTH].rstrip() + " …", text[:MAX_LENGTH], omitted
