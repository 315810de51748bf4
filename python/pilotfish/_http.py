"""A small HTTP/1.1 client on a raw socket, Unix or TLS: http.client costs 118 us a POST, this one a third of it.

Used by the executor: one connection for uploads, one for the stream of outcomes, one for control calls."""
import json
import os
import socket
import ssl
import struct
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from .errors import ApiError

HEAD_BYTES_MAX = 64 << 10  # of an answer: ours are a few hundred bytes; more is not our broker
RECV_BYTES = 1 << 18  # one read of a stream: thousands of small outcomes
CONNECT_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 60.0  # a broker answers after a sync; a minute without an answer means that it will not
API_VERSION = "1"


class ConnectionLost(OSError):
    """The connection broke, or the answer is not HTTP. The request may or may not have been done."""


class Address(NamedTuple):
    """Where a broker listens: ``socket`` (a path), or ``host`` and ``port`` with its pinned certificate and a token."""

    socket: Optional[str] = None
    host: str = ""
    port: int = 0
    certificate: Optional[str] = None
    token: Optional[str] = None

    def __str__(self) -> str:
        return self.socket if self.socket is not None else "https://%s:%d" % (self.host, self.port)


class Reply(NamedTuple):
    """Status and whole body of an answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body) if self.body else {}


def connect(address: Address) -> socket.socket:
    """A connected socket. The peer of a Unix socket must be this user (or root), the peer of TLS hold the pinned certificate."""
    if address.socket is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address.socket)
            uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in (0, os.getuid()):
                raise ApiError("the broker at %s runs as user %d, not as you (%d)" % (address, uid, os.getuid()), "forbidden")
        except BaseException:
            sock.close()
            raise
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is pinned, whatever names it has
    context.load_verify_locations(cafile=address.certificate)
    with open(address.certificate or "") as file:
        pinned = ssl.PEM_cert_to_DER_cert(file.read())
    plain = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped = context.wrap_socket(plain)
        if wrapped.getpeercert(binary_form=True) != pinned:
            raise ssl.SSLError("the broker shows another certificate than the one in %s" % address.certificate)
        return wrapped
    except BaseException:
        plain.close()
        raise


class Connection:
    """One keep-alive connection. Not thread-safe: each has one user at a time. Connects when it is first needed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sock: Optional[socket.socket] = None
        self.shut_down = False
        self.buffer = bytearray()
        host = "localhost" if address.socket is not None else "%s:%d" % (address.host, address.port)
        self.fixed = "Host: %s\r\nX-Pilotfish-Api: %s\r\n" % (host, API_VERSION)
        if address.token:
            self.fixed += "Authorization: Bearer %s\r\n" % address.token

    def close(self) -> None:
        """Close it; another thread that reads it wakes up."""
        sock, self.sock = self.sock, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        self.buffer.clear()

    def shut(self) -> None:
        """Close it for good: also one that another thread is about to connect."""
        self.shut_down = True
        self.close()

    def request(self, method: str, path: str, parts: Iterable[bytes] = (), headers: str = "",
                timeout: float = REPLY_TIMEOUT_S) -> Reply:
        """One call, whatever its status. Raises ConnectionLost; the connection is closed then."""
        try:
            self._send(method, path, list(parts), headers, timeout)
            status, fields = self._head()
            if fields.get("transfer-encoding", "").lower() == "chunked":
                body = b"".join(self._chunks())
            else:
                body = self._exactly(int(fields.get("content-length", "0")))
            if fields.get("connection", "").lower() == "close":
                self.close()
            return Reply(status, body)
        except (OSError, ValueError) as error:
            self.close()
            raise lost(self.address, error)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, path: str, body: Any = None, timeout: float = REPLY_TIMEOUT_S) -> Any:
        """One call with JSON in and out. Raises ApiError with the broker's words for any status but 2xx."""
        parts: List[bytes] = []
        headers = ""
        if body is not None:
            parts = [json.dumps(body).encode()]
            headers = "Content-Type: application/json\r\n"
        reply = self.request(method, path, parts, headers, timeout)
        check(reply)
        return reply.json()

    def stream(self, path: str, timeout: float) -> Iterator[bytes]:
        """GET ``path``; yields pieces of the body as they come. Ends at its end; ``timeout`` is the longest silence."""
        try:
            self._send("GET", path, [], "", timeout)
            status, fields = self._head()
            chunked = fields.get("transfer-encoding", "").lower() == "chunked"
            if status != 200:
                body = b"".join(self._chunks()) if chunked else self._exactly(int(fields.get("content-length", "0")))
                check(Reply(status, body))
            if not chunked:
                raise ValueError("the stream is not chunked")
            for piece in self._chunks():
                yield piece
        except (OSError, ValueError) as error:
            self.close()
            raise lost(self.address, error)

    def _send(self, method: str, path: str, parts: List[bytes], headers: str, timeout: float) -> None:
        if self.sock is None:
            self.buffer.clear()
            self.sock = connect(self.address)
            if self.shut_down:
                self.close()
                raise ConnectionLost("the connection to the broker at %s was shut down" % (self.address,))
        sock = self.sock
        sock.settimeout(timeout)
        length = sum(map(len, parts))
        head = "%s %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n" % (method, path, self.fixed, headers, length)
        if length < RECV_BYTES:
            sock.sendall(b"".join([head.encode("ascii")] + parts))
        else:
            sock.sendall(head.encode("ascii"))
            for part in parts:
                sock.sendall(part)

    def _more(self) -> None:
        sock = self.sock
        piece = sock.recv(RECV_BYTES) if sock is not None else b""
        if not piece:
            raise ValueError("it was closed")
        self.buffer += piece

    def _line(self) -> bytes:
        """Up to the next line end, which is taken away."""
        start = 0
        while True:
            end = self.buffer.find(b"\r\n", start)
            if end >= 0:
                line = bytes(self.buffer[:end])
                del self.buffer[:end + 2]
                return line
            if len(self.buffer) > HEAD_BYTES_MAX:
                raise ValueError("a line of more than %d bytes" % HEAD_BYTES_MAX)
            start = max(0, len(self.buffer) - 1)
            self._more()

    def _head(self) -> Tuple[int, Dict[str, str]]:
        """Status and header fields of the answer."""
        line = self._line()
        while line.startswith(b"HTTP/1.1 100"):
            self._line()
            line = self._line()
        words = line.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise ValueError("%r is not an HTTP answer" % line[:80])
        fields: Dict[str, str] = {}
        while True:
            field = self._line()
            if not field:
                return int(words[1]), fields
            name, _, value = field.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()

    def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        body = bytes(self.buffer[:size])
        del self.buffer[:size]
        return body

    def _chunks(self) -> Iterator[bytes]:
        """The pieces of a chunked body. Large chunks come in pieces as they arrive."""
        while True:
            left = int(self._line().split(b";")[0], 16)
            if left == 0:
                while self._line():
                    pass
                return
            while left:
                if not self.buffer:
                    self._more()
                piece = bytes(self.buffer[:left])
                del self.buffer[:left]
                left -= len(piece)
                yield piece
            self._line()


def lost(address: Address, error: BaseException) -> ConnectionLost:
    """``error`` as ConnectionLost, naming the broker."""
    if isinstance(error, ConnectionLost):
        return error
    made = ConnectionLost("the connection to the broker at %s broke: %s" % (address, error))
    made.__cause__ = error
    return made


def check(reply: Reply) -> None:
    """Raise ApiError unless the status is 2xx."""
    if 200 <= reply.status < 300:
        return
    try:
        said = json.loads(reply.body)
        message = str(said["message"])
    except (ValueError, KeyError, TypeError):
        said = {}
        message = "the broker answered %d: %s" % (reply.status, reply.body[:200].decode("utf-8", "replace"))
    raise ApiError(message, str(said.get("code", "")), reply.status, said.get("hint"),
                   bool(said.get("retryable", reply.status in (429, 503))))
