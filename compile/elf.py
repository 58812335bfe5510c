"""Reads the names that an object file needs from others, of the symbol table in its ELF format."""

import struct
from collections.abc import Iterator

__all__ = ["undefined_symbols"]

_SECTIONS_OFFSET = 40  # in the header of the file, where the table of sections starts
_SECTIONS_COUNT = 58  # size of an entry, then their number
_SYMBOL_TABLE = 2  # type of a section
_SYMBOL_BYTES = 24


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


def _sections(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield type, offset, size and linked section of each section."""
    (start,) = struct.unpack_from("<Q", data, _SECTIONS_OFFSET)
    width, count = struct.unpack_from("<HH", data, _SECTIONS_COUNT)
    for number in range(count):
        kind, offset, size, link = struct.unpack_from("<4xI16xQQI", data, start + number * width)
        yield kind, offset, size, link
