"""PNG and JPEG files as the parts that make their picture: what else programs write into them is cut out."""

import re
import struct

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# chunks that a picture is drawn from; texts, times, names of profiles and private ones are none of these
CHUNKS = frozenset(b"IHDR PLTE tRNS IDAT IEND gAMA cHRM sRGB sBIT bKGD pHYs".split())
_JFIF, _ADOBE, _SCAN, _END = 0xE0, 0xEE, 0xDA, 0xD9
_TABLES = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xDF} - {0xC8})  # frames, tables, restarts and lines
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # behind a scan's start; 00 and restarts are part of the scan


def bare(data: bytes) -> bytes | None:
    """The file with what its picture is drawn from alone, itself where it holds nothing else; None where its parts are
    none that a PNG or a JPEG file has."""
    try:
        return _png(data) if data.startswith(PNG) else _jpeg(data)
    except (struct.error, IndexError):
        return None


def _png(data: bytes) -> bytes | None:
    place, kept = len(PNG), [PNG]
    while True:
        (size,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + size
        if end > len(data) or (kind not in CHUNKS and kind[:1].isupper()):  # a capital: no reader may pass over it
            return None
        if kind in CHUNKS:
            kept.append(data[place:end])
        if kind == b"IEND":
            return b"".join(kept)
        place = end


def _jpeg(data: bytes) -> bytes | None:
    if not data.startswith(JPEG):
        return None
    place, kept = len(JPEG), [JPEG]
    while True:
        while data[place : place + 2] == b"\xff\xff":  # filling before a marker
            place += 1
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == _END:
            return b"".join((*kept, data[place : place + 2]))
        (size,) = struct.unpack_from(">H", data, place + 2)
        end = place + 2 + size
        body = data[place + 4 : end]
        if len(body) != size - 2:
            return None
        if marker == _JFIF and body.startswith(b"JFIF\0") and len(body) >= 14:
            kept.append(b"\xff\xe0\0\x10" + body[:12] + b"\0\0")  # without its thumbnail
        elif marker in _TABLES:
            kept.append(data[place:end])
        elif marker == _ADOBE and body.startswith(b"Adobe"):  # which says in 12 bytes what the colours are
            kept.append(b"\xff\xee\0\x0e" + body[:12])
        elif marker == _SCAN:
            following = _MARKER.search(data, end)
            if following is None:
                return None
            kept.append(data[place : following.start()])
            end = following.start()
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # no application's part, and no comment
            return None
        place = end
