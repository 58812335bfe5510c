"""Object files in the ELF format: what names one needs from others, where its code may lie."""

import struct
from collections.abc import Iterator

__all__ = ["align_code", "undefined_symbols"]

_SECTIONS_OFFSET = 40  # in the header of the file, where the table of sections starts
_SECTIONS_COUNT = 58  # size of an entry, then their number
_SYMBOL_TABLE = 2  # type of a section
_SYMBOL_BYTES = 24
_IS_CODE = 4  # among the flags of a section
_FLAGS_OFFSET, _ALIGNMENT_OFFSET = 8, 48  # in the entry of a section


def undefined_symbols(data: bytes) -> frozenset[str]:
    """Return the symbols that an object (ELF, 64 bits, little endian) uses and does not define."""
    names = set[str]()
    sections = list(_sections(data))
    for kind, offset, size, link in sections:
        if kind != _SYMBOL_TABLE:
            continue
        _, strings, length, _ = sections[link]
        texts = data[strings : strings + length]
        for place in range(offset, offset + size, _SYMBOL_BYTES):
            name, _, _, section = struct.unpack_from("<IBBH", data, place)
            if name and not section:
                names.add(texts[name : texts.index(0, name)].decode())
    return frozenset(names)


def align_code(data: bytes, boundary: int) -> bytes:
    """Return an object (ELF, 64 bits, little endian) whose code starts at multiples of `boundary`.

    What is linked before it no longer moves its loops against the lines of the instruction cache.
    """
    aligned = bytearray(data)
    for entry in _entries(data):
        (flags,) = struct.unpack_from("<Q", data, entry + _FLAGS_OFFSET)
        (alignment,) = struct.unpack_from("<Q", data, entry + _ALIGNMENT_OFFSET)
        if flags & _IS_CODE and alignment < boundary:
            struct.pack_into("<Q", aligned, entry + _ALIGNMENT_OFFSET, boundary)
    return bytes(aligned)


def _sections(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield type, offset, size and linked section of each section."""
    for entry in _entries(data):
        kind, offset, size, link = struct.unpack_from("<4xI16xQQI", data, entry)
        yield kind, offset, size, link


def _entries(data: bytes) -> range:
    """Where the entries of the table of sections start."""
    (start,) = struct.unpack_from("<Q", data, _SECTIONS_OFFSET)
    width, count = struct.unpack_from("<HH", data, _SECTIONS_COUNT)
    return range(start, start + count * width, width)
