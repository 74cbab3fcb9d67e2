"""Texts of strangers made safe to look at: what would be invisible, or would move other text about, is named."""

import re

# Controls but line feed and tab; marks that turn the direction; zero-width and other invisible characters; tags.
# Joiners (U+200C, U+200D) and variation selectors stay: emoji and several scripts need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)

SHOWN, MOST = 480, 12_000  # characters of a text shown at once, and in all


def make_visible(text: str) -> str:
    """The text with each such character as its code point in brackets, such as ⟨U+202E⟩."""
    return HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def one_line(text: str) -> str:
    """The same on one line: for names."""
    return " ".join(make_visible(text).split())


def visible_pieces(turns: tuple[str, ...]) -> tuple[str, str, int]:
    """A text as it is shown: its beginning, the whole where that is longer, and how many characters are left out."""
    text = make_visible("\n\n".join(turns)) if len(turns) == 1 else _numbered(turns)
    if len(text) <= SHOWN:
        return text, "", 0
    return text[:SHOWN].rstrip() + " …", text[:MOST], max(0, len(text) - MOST)


def _numbered(turns: tuple[str, ...]) -> str:
    return "\n\n".join(
        f"[turn {number}]\n{make_visible(turn)}" for number, turn in enumerate(turns, 1)
    )
