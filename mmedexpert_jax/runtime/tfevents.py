"""TensorBoard's event files, scalars only.

The format is TFRecord around two small protocol buffers (tensorflow/core/util/event.proto, summary.proto). Written
here because tensorboardX imports torch where it is installed, takes seconds to do so, and writes from a thread whose
errors nobody sees.
"""

import os
import socket
import struct
import time
from pathlib import Path

from mmedexpert_jax.runtime import files


class EventWriter:
    """Appends to a new event file in `folder`.

    Args:
        purge_step: tells TensorBoard to forget what earlier files say of this step and later ones; None for a new run.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        with files.writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        self._write(_event(0, _string(3, "brain.Event:2")))
        if purge_step is not None:
            self._write(_event(purge_step, _message(7, _varint_field(1, 1))))  # SessionLog.START

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one event with a value for each name. Raises ResourceError; nothing half-written remains."""
        summary = b"".join(
            _message(1, _string(1, tag) + struct.pack("<Bf", 2 << 3 | 5, value)) for tag, value in values.items()
        )
        self._write(_event(step, _message(5, summary)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        header = struct.pack("<Q", len(event))
        record = header + struct.pack("<I", _masked_crc(header)) + event + struct.pack("<I", _masked_crc(event))
        files.append(self._file, self.path, record)


def _event(step: int, what: bytes) -> bytes:
    return struct.pack("<Bd", 1 << 3 | 1, time.time()) + _varint_field(2, step) + what


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _string(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
