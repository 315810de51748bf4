"""Drives ``worker.py`` as a manager does, through socket pairs, without Rust. Used by the worker's tests and the fake broker."""
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

WORKER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pilotfish", "worker.py")


LARGE = 1 << 31  # in a length: what stands there names a payload


class Named(bytes):
    """What names a large item or value: its hash and its length."""


class Answer(NamedTuple):
    """One row of an ANSWERS frame."""

    seq: int
    status: int
    ran_us: int
    value: bytes
    error: Dict[str, Any]

    def result(self) -> Any:
        """The unpickled value."""
        return pickle.loads(self.value) if self.value else None


def call(*args: Any, **kwargs: Any) -> bytes:
    """The item of one call."""
    return pickle.dumps((args, kwargs), 5)


class ManagerEnd:
    """A worker process and the manager's ends of its pipes."""

    def __init__(self, python: str = sys.executable, env: Optional[Dict[str, str]] = None, cwd: Optional[str] = None) -> None:
        self.data, data = socket.socketpair()
        self.control, control = socket.socketpair()
        environ = dict(os.environ, PF_WORKER_FDS="%d,%d" % (data.fileno(), control.fileno()), **(env or {}))
        self.process = subprocess.Popen(
            [python, WORKER], pass_fds=(data.fileno(), control.fileno()), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=cwd)
        data.close()
        self.untaken = control  # where permissions lie that the worker has not taken
        self.buffer = b""
        self.seq = 0
        self.output: Tuple[List[bytes], List[bytes]] = ([], [])
        self.readers = [threading.Thread(target=self._read, args=(pipe, into), daemon=True)
                        for pipe, into in zip((self.process.stdout, self.process.stderr), self.output)]
        for reader in self.readers:
            reader.start()
        kind, body = self.frame()
        assert kind == 10, kind
        self.hello = json.loads(body)
        self.marker = bytes.fromhex(self.hello["marker"])

    @staticmethod
    def _read(pipe: Any, into: List[bytes]) -> None:
        while True:
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                return
            into.append(piece)

    def send(self, kind: int, body: bytes, version: int = 3) -> None:
        """One frame on the data pipe."""
        self.data.sendall(struct.pack("<IBB", len(body) + 2, version, kind) + body)

    def job(self, slot: int, kind: int, function: bytes, name: str = "f", chunked: bool = False,
            client: Tuple[int, int] = (0, 0), files: bytes = b"") -> None:
        """A JOB frame."""
        head = struct.pack("<IBBBBHH", slot, kind, chunked, *client, len(name), len(files))
        self.send(1, head + name.encode() + files + function)

    def source(self, slot: int, text: str, name: str = "f", chunked: bool = False, files: bytes = b"") -> None:
        """A JOB frame with a function by source."""
        self.job(slot, 3, json.dumps({"name": name, "source": text}).encode(), name, chunked, files=files)

    def tasks(self, items: List[bytes], slot: int = 0) -> List[int]:
        """A TASKS frame; returns the seqs. An item of type Named only names what is in a file."""
        count = len(items)
        seqs = list(range(self.seq, self.seq + count))
        self.seq += count
        self.control.sendall(struct.pack("<%dQ" % count, *seqs))
        self.send(2, struct.pack("<I%dQ" % count, count, *seqs) + struct.pack("<%dI" % count, *[slot] * count)
                  + struct.pack("<%dI" % count, *[len(item) | LARGE * isinstance(item, Named) for item in items]) + b"".join(items))
        return seqs

    def take_back(self) -> List[int]:
        """Tasks that have not started, and now will not."""
        try:
            untaken = self.untaken.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return list(struct.unpack("<%dQ" % (len(untaken) // 8), untaken))

    def frame(self) -> Tuple[int, bytes]:
        """The next frame of the worker; EOFError when it has ended."""
        while True:
            if len(self.buffer) >= 4:
                length = int.from_bytes(self.buffer[:4], "little")
                if len(self.buffer) >= 4 + length:
                    frame, self.buffer = self.buffer[4:4 + length], self.buffer[4 + length:]
                    assert frame[0] == 3
                    return frame[1], frame[2:]
            piece = self.data.recv(1 << 20)
            if not piece:
                raise EOFError
            self.buffer += piece

    def answers(self, count: int) -> List[Answer]:
        """Wait for ``count`` answers."""
        rows: List[Answer] = []
        while len(rows) < count:
            kind, body = self.frame()
            assert kind == 11, kind
            rows.extend(parse_answers(body))
        assert len(rows) == count, (len(rows), count)
        return rows

    def run(self, *items: bytes, slot: int = 0) -> List[Answer]:
        """Send tasks and wait for their answers."""
        self.tasks(list(items), slot)
        return self.answers(len(items))

    def end(self) -> int:
        """END; returns the exit code, with all output read."""
        self.send(3, b"")
        self.control.shutdown(socket.SHUT_WR)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself."""
        code = self.process.wait(timeout=30)
        for reader in self.readers:
            reader.join(timeout=10)
        self.close()
        return code

    def close(self) -> None:
        """Drop everything; a worker that still runs sees the end of its pipes."""
        for end in (self.data, self.control, self.untaken):
            end.close()
        self.process.wait(timeout=30)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def out(self, stream: int = 0) -> Dict[int, bytes]:
        """Output by seq, split at the markers; what follows the last one is under -1."""
        text = b"".join(self.output[stream])
        found: Dict[int, bytes] = {}
        while True:
            before, marker, after = text.partition(self.marker)
            if not marker:
                found[-1] = before
                return found
            found[int.from_bytes(after[:8], "little")] = before
            text = after[8:]


def parse_answers(body: bytes) -> List[Answer]:
    """Rows of an ANSWERS frame."""
    count, = struct.unpack_from("<I", body)
    at = 4
    columns = []
    for code, size in (("Q", 8), ("B", 1), ("I", 4), ("I", 4), ("I", 4)):
        columns.append(struct.unpack_from("<%d%s" % (count, code), body, at))
        at += size * count
    seqs, statuses, rans, value_lens, error_lens = columns
    blobs = []
    for length in value_lens + error_lens:
        end = at + (length & ~LARGE)
        blobs.append(Named(body[at:end]) if length & LARGE else body[at:end])
        at = end
    assert at == len(body), (at, len(body))
    return [Answer(seqs[i], statuses[i], rans[i], blobs[i], json.loads(blobs[count + i] or b"{}")) for i in range(count)]
