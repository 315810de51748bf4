"""Fixed columns of the HTTP API (docs/http-api.md, "Columns"): read and written in bulk. Used by the executor and its tests."""
import hashlib
import struct
import sys
from array import array
from typing import Iterator, List, NamedTuple, Sequence

TASKS_TYPE = "application/vnd.pilotfish.tasks"
LARGE = 1 << 31  # in a length: what stands there names a payload
FRAME_BYTES_MAX = 64 << 20  # of one frame of outcomes; far above what a broker sends, so that garbage is seen


class Named(bytes):
    """What stands for a payload that is too large for a request or a stream: its BLAKE2b-256 and its length."""

    @property
    def hash(self) -> str:
        """Its hash, in hexadecimal digits."""
        return self[:32].hex()

    @property
    def size(self) -> int:
        """Its length."""
        return int(struct.unpack_from("<Q", self, 32)[0])


def name_of(payload: bytes) -> Named:
    """What names ``payload``."""
    return Named(hashlib.blake2b(payload, digest_size=32).digest() + struct.pack("<Q", len(payload)))


class Outcomes(NamedTuple):
    """One frame of outcomes: columns, and all values and errors as one view. ``large``: the places of those whose value is only named."""

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
    large: Sequence[int] = ()

    @property
    def cursor(self) -> str:
        """Where to go on after this frame."""
        return "%x-%x" % (self.log_id, self.seq)


def encode_tasks(items: Sequence[bytes]) -> List[bytes]:
    """The body of an append, in parts."""
    lens = array("I", [len(item) | LARGE if type(item) is Named else len(item) for item in items])
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
    large: Sequence[int] = ()
    if max(columns[5], default=0) >= LARGE:
        large = [n for n, length in enumerate(columns[5]) if length >= LARGE]
        columns[5] = [length & ~LARGE for length in columns[5]]
        if any(columns[5][n] != 40 for n in large):
            raise ValueError("a frame has a large value that is not named")
    if sum(columns[5]) + sum(columns[6]) != len(blob):
        raise ValueError("values and errors of a frame are not as long as it says")
    jobs, indexes, kinds, held, ran, value_lens, error_lens = columns
    return Outcomes(log_id, seq, jobs, indexes, kinds, held, ran, value_lens, error_lens, blob, large)
