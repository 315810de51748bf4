"""Fixed columns of the HTTP API (docs/http-api.md, "Columns"): read and written in bulk. Used by the executor and its tests."""
import struct
import sys
from array import array
from typing import Iterator, List, NamedTuple, Sequence

TASKS_TYPE = "application/vnd.pilotfish.tasks"
FRAME_BYTES_MAX = 64 << 20  # of one frame of outcomes; far above what a broker sends, so that garbage is seen


class Outcomes(NamedTuple):
    """One frame of outcomes: columns, and all values and errors as one view."""

    log_id: int
    seq: int
    jobs: Sequence[int]
    indexes: Sequence[int]
    kinds: Sequence[int]
    held_us: Sequence[int]
    ran_us: Sequence[int]
    value_lens: Sequence[int]
    error_lens: Sequence[int]
    blob: memoryview

    @property
    def cursor(self) -> str:
        """Where to go on after this frame."""
        return "%x-%x" % (self.log_id, self.seq)


def encode_tasks(items: Sequence[bytes]) -> List[bytes]:
    """The body of an append, in parts."""
    lens = array("I", map(len, items))
    if sys.byteorder != "little":
        lens.byteswap()
    return [b"PFT1" + struct.pack("<I", len(items)) + lens.tobytes(), b"".join(items)]


class OutcomeReader:
    """Finds the frames in a stream of pieces."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[Outcomes]:
        """The frames that are complete with ``piece``. Raises ValueError for what is no frame."""
        self.buffer += piece
        while len(self.buffer) >= 8:
            if self.buffer[:4] != b"PFO1":
                raise ValueError("no frame of outcomes but %r" % bytes(self.buffer[:4]))
            length, = struct.unpack_from("<I", self.buffer, 4)
            if length > FRAME_BYTES_MAX:
                raise ValueError("a frame of %d bytes" % length)
            if len(self.buffer) < 8 + length:
                return
            frame = bytes(memoryview(self.buffer)[8:8 + length])
            del self.buffer[:8 + length]
            yield decode_outcomes(frame)


def decode_outcomes(frame: bytes) -> Outcomes:
    """One frame, without magic and length."""
    if len(frame) < 20:
        raise ValueError("a frame of %d bytes" % len(frame))
    count, log_id, seq = struct.unpack_from("<IQQ", frame)
    at = 20
    if len(frame) < at + 29 * count:
        raise ValueError("a frame of %d bytes for %d outcomes" % (len(frame), count))
    columns: List[Sequence[int]] = []
    for code, size in (("Q", 8), ("I", 4), ("B", 1), ("I", 4), ("I", 4), ("I", 4), ("I", 4)):
        columns.append(struct.unpack_from("<%d%s" % (count, code), frame, at))
        at += size * count
    blob = memoryview(frame)[at:]
    if sum(columns[5]) + sum(columns[6]) != len(blob):
        raise ValueError("values and errors of a frame are not as long as it says")
    jobs, indexes, kinds, held, ran, value_lens, error_lens = columns
    return Outcomes(log_id, seq, jobs, indexes, kinds, held, ran, value_lens, error_lens, blob)
