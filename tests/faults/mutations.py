"""Files made wrong, in ways that disks, networks, editors and other programs make them wrong."""

import random
import re
from collections.abc import Callable

NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
STRANGE = (
    *(
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
    ),
    *(
        b"18446744073709551616",
        b"null",
        b"true",
        b'""',
        b"[]",
        b"{}",
        b"[" * 20_000 + b"]" * 20_000,
        b"'",
        b"=1+1",
    ),
    *(
        b"\x00",
        b"\x1b[31m",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\r",
        b"\xe2\x80\xae",
        b"\\ud800",
        b"../../x",
        b"e" * 5000,
    ),
)


def flip(data: bytes, chance: random.Random) -> bytes:
    """One to eight bits, anywhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The file ends early."""
    return data[: chance.randrange(len(data))]


def lose(data: bytes, chance: random.Random) -> bytes:
    """A piece is missing from its middle."""
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randint(1, 400) :]


def blank(data: bytes, chance: random.Random) -> bytes:
    """A block of NUL bytes, as after a power cut."""
    start, size = chance.randrange(len(data)), chance.choice((1, 16, 512, 4096))
    return data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    """A piece stands there twice."""
    start = chance.randrange(len(data))
    end = start + chance.randint(1, 400)
    return data[:end] + data[start:]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Something strange, anywhere."""
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(STRANGE) + data[at:]


def renumber(data: bytes, chance: random.Random) -> bytes:
    """Something strange in place of a number."""
    places = [match.span() for match in NUMBER.finditer(data[:200_000])]
    if not places:
        return insert(data, chance)
    start, end = chance.choice(places)
    return data[:start] + chance.choice(STRANGE) + data[end:]


def shuffle(data: bytes, chance: random.Random) -> bytes:
    """Two lines change places."""
    lines = data.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def recode(data: bytes, chance: random.Random) -> bytes:
    """Saved by an editor with opinions: another encoding, a byte order mark, other line ends."""
    text = data.decode("latin-1")
    return chance.choice(
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
    *(flip, cut, lose, blank, repeat, insert, renumber, shuffle, recode),
)


def mutate(data: bytes, chance: random.Random, others: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """One or two faults, or another file in its place; what was done, and the bytes."""
    if others and chance.random() < 0.05:
        return "another file", chance.choice(others)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        kind = chance.choice(KINDS)
        data = kind(data or b" ", chance)
        done.append(kind.__name__)
    return " and ".join(done), data
