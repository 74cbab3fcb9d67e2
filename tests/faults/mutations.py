"""Damage files as disks, networks, editors and other programs do. Use `mutate`."""

import random
import re
from collections.abc import Callable

NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")

STRANGE_NUMBERS = (
    b"NaN",
    b"nan",
    b"Infinity",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"1e-320",
    b"9" * 400,
    b"0x10",
    b"1_000",
    b"18446744073709551616",
)
STRANGE_JSON = (
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"[" * 20_000 + b"]" * 20_000,
)
STRANGE_TEXT = (
    b"'",
    b"=1+1",
    b"\x00",
    b"\x1b[31m",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\r",
    b"\xe2\x80\xae",
    b"\\ud800",
    b"../../x",
    b"e" * 5000,
)
STRANGE = (*STRANGE_NUMBERS, *STRANGE_JSON, *STRANGE_TEXT)


def mutate(data: bytes, rng: random.Random, others: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """Return what was done, and the bytes after one or two faults, or one of the other files."""
    if others and rng.random() < 0.05:
        return "another file", rng.choice(others)

    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.choice(KINDS)
        data = kind(data or b" ", rng)
        done.append(kind.__name__)
    return " and ".join(done), data


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits, anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_end(data: bytes, rng: random.Random) -> bytes:
    """End the file early."""
    return data[: rng.randrange(len(data))]


def lose_piece(data: bytes, rng: random.Random) -> bytes:
    """Remove a piece from the middle."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 400) :]


def blank_block(data: bytes, rng: random.Random) -> bytes:
    """Replace a block by NUL bytes, as after a power cut."""
    start = rng.randrange(len(data))
    size = rng.choice((1, 16, 512, 4096))
    return data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


def repeat_piece(data: bytes, rng: random.Random) -> bytes:
    """Write a piece twice."""
    start = rng.randrange(len(data))
    end = start + rng.randint(1, 400)
    return data[:end] + data[start:]


def insert_strange(data: bytes, rng: random.Random) -> bytes:
    """Insert something strange, anywhere."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(STRANGE) + data[place:]


def replace_number(data: bytes, rng: random.Random) -> bytes:
    """Put something strange in place of a number."""
    places = [match.span() for match in NUMBER.finditer(data[:200_000])]
    if not places:
        return insert_strange(data, rng)
    start, end = rng.choice(places)
    return data[:start] + rng.choice(STRANGE) + data[end:]


def swap_lines(data: bytes, rng: random.Random) -> bytes:
    """Exchange two lines."""
    lines = data.splitlines(keepends=True)
    first = rng.randrange(len(lines))
    second = rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def recode(data: bytes, rng: random.Random) -> bytes:
    """Save with another encoding, a byte order mark, or other line ends, as some editors do."""
    text = data.decode("latin-1")
    return rng.choice(
        (
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + data,
            data.replace(b"\n", b"\r\n"),
            data.replace(b"\n", b"\r"),
            data.replace(b",", b";"),
            data.replace(b'"', b"'"),
            b"\n\n" + data,
            b"",
            b" ",
        )
    )


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits,
    cut_end,
    lose_piece,
    blank_block,
    repeat_piece,
    insert_strange,
    replace_number,
    swap_lines,
    recode,
)
