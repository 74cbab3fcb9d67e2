"""Check what a process is said to take, and that it gives back what it has freed."""

import sys

import pytest

from kit.storage.memory import peak_memory, resident_memory, return_freed_memory

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process takes now")
def test_freed_memory_is_returned():
    # Small pieces that are freed around one that is kept, which holds the heap's end in place.
    pieces = [bytearray(64 << 10) for _ in range(3200)]
    last = pieces.pop()
    full = resident_memory()
    assert full > 200 * MIB
    assert peak_memory() >= full - MIB

    pieces.clear()
    return_freed_memory()
    assert resident_memory() < full - 150 * MIB
    assert len(last) == 64 << 10
