"""A broker for the client's tests: the few calls of docs/http-api.md that the client makes, over a Unix socket, with one
real worker behind them. Faults can be switched on: it can be stopped and started again, cut connections, and hold its queue."""
import hashlib
import json
import os
import re
import shutil
import socketserver
import ssl
import struct
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import parse_qs, urlsplit

from .harness import LARGE, ManagerEnd, Named, parse_answers

KINDS = {"reference": 1, "cloudpickle": 2, "source": 3}


class FakeBroker:
    """State and faults; ``start`` and ``stop`` the listening part as often as wanted."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.Condition()
        self.log_id = 7
        self.functions: Dict[str, Tuple[int, bytes]] = {}
        self.jobs: Dict[int, Dict[str, Any]] = {}
        self.outcomes: List[Tuple[int, int, int, bytes, bytes]] = []
        self.queue: List[Tuple[int, int, bytes]] = []
        self.payloads: Dict[Tuple[int, str], bytes] = {}
        self.forgets_values = False
        self.files = path + ".files"
        os.makedirs(self.files, exist_ok=True)
        self.calls: List[str] = []
        self.held = False  # nothing leaves the queue
        self.cut_after_append = 0  # so many appends are done but not answered
        self.authorization: Optional[str] = None
        self.refuse_jobs: Optional[Tuple[int, Dict[str, Any]]] = None
        self.running = True
        self.server: Any = None
        self.open_sockets: List[Any] = []
        self.worker = ManagerEnd()
        self.under_way: Dict[int, Tuple[int, int]] = {}
        self.threads = [threading.Thread(target=self.feed, daemon=True), threading.Thread(target=self.collect, daemon=True)]
        for thread in self.threads:
            thread.start()

    def start(self) -> None:
        """Listen."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.serve(socketserver.UnixStreamServer, self.path)

    def start_tls(self, context: ssl.SSLContext, authorization: str) -> int:
        """Listen by TLS on 127.0.0.1; returns the port."""
        self.authorization = authorization
        self.serve(socketserver.TCPServer, ("127.0.0.1", 0), context)
        return int(self.server.server_address[1])

    def serve(self, kind: Any, address: Any, context: Optional[ssl.SSLContext] = None) -> None:
        """Serve requests on threads."""
        broker = self

        class Handler(RequestHandler):
            state = broker

        class Server(socketserver.ThreadingMixIn, kind):  # type: ignore[misc]
            daemon_threads = True
            request_queue_size = 64

            def get_request(self) -> Any:
                request, _address = super().get_request()
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
                broker.open_sockets.append(request)
                return request, ("local", 0)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # cut connections are what these tests are about

        self.server = Server(address, Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut all connections; the state stays."""
        self.server.shutdown()
        self.server.server_close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        with self.lock:
            self.server = None
            self.lock.notify_all()
        for request in self.open_sockets:
            try:
                request.shutdown(2)
            except OSError:
                pass
        self.open_sockets.clear()

    def close(self) -> None:
        """End everything."""
        with self.lock:
            self.running = False
            self.lock.notify_all()
        if self.server is not None:
            self.stop()
        self.worker.close()
        for thread in self.threads:
            thread.join(timeout=10)
        shutil.rmtree(self.files)

    def hold(self, held: bool) -> None:
        """Keep tasks in the queue, or let them go."""
        with self.lock:
            self.held = held
            self.lock.notify_all()

    def new_log(self) -> None:
        """Forget everything, as a broker with another folder."""
        with self.lock:
            self.log_id += 1
            self.functions.clear()
            self.jobs.clear()
            self.outcomes.clear()
            self.queue.clear()
            self.lock.notify_all()

    def feed(self) -> None:
        """Queue to worker."""
        defined = set()
        while True:
            with self.lock:
                self.lock.wait_for(lambda: not self.running or (self.queue and not self.held))
                if not self.running:
                    return
                batch, self.queue = self.queue[:1000], self.queue[1000:]
                jobs = {job: self.jobs[job] for job, _index, _item in batch}
            for job, record in jobs.items():
                if job not in defined:
                    defined.add(job)
                    python = record["spec"]["body"]["python"]
                    kind, text = self.functions[python["function"]]
                    client = tuple(map(int, python["client_python"].split(".")))
                    files = os.fsencode(os.path.join(self.files, "j%d-" % job))
                    self.worker.job(job, kind, text, chunked=python["chunked"], client=client, files=files)
            for job, index, item in batch:
                with self.lock:
                    self.under_way[self.worker.seq] = (job, index)
                self.worker.tasks([item], slot=job)

    def collect(self) -> None:
        """Worker to outcomes."""
        while True:
            try:
                _kind, body = self.worker.frame()
            except (EOFError, OSError):
                return
            with self.lock:
                for row in parse_answers(body):
                    job, index = self.under_way.pop(row.seq)
                    if isinstance(row.value, Named):
                        name = row.value[:32].hex()
                        with open(os.path.join(self.files, "j%d-%s.value" % (job, name)), "rb") as file:
                            value = file.read()
                        if not self.forgets_values:
                            self.payloads[job, name] = value
                    self.add_outcome(job, index, row.status, row.value, json.dumps(dict(row.error, node="n1")).encode() if row.status else b"")
                self.lock.notify_all()

    def add_outcome(self, job: int, index: int, kind: int, value: bytes, error: bytes) -> None:
        """One outcome, under the lock."""
        self.outcomes.append((job, index, kind, value, error))
        self.lock.notify_all()


class RequestHandler(BaseHTTPRequestHandler):
    """HTTP to state."""

    state: FakeBroker
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None) -> None:
        """A JSON answer."""
        text = json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def error(self, status: int, code: str, message: str) -> None:
        """An error answer."""
        self.answer(status, {"code": code, "message": message, "hint": None, "retryable": False})

    def handle_any(self) -> None:
        """All methods."""
        state = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        url = urlsplit(self.path)
        with state.lock:
            state.calls.append("%s %s" % (self.command, re.sub(r"[0-9a-f]{32,}", "ID", url.path)))
        if state.authorization is not None and self.headers["Authorization"] != state.authorization:
            self.error(401, "unauthorized", "unknown token")
            return
        if url.path == "/v1/outcomes":
            self.outcomes({key: values[0] for key, values in parse_qs(url.query).items()})
            return
        with state.lock:
            self.route(url.path, url.query, body)

    do_GET = do_PUT = do_POST = handle_any

    def route(self, path: str, query: str, body: bytes) -> None:
        """The plain calls, under the lock."""
        state = self.state
        words = path.split("/")[2:]
        if path == "/v1/limits":
            self.answer(200, {"payload_bytes_max": 8 << 20, "inline_bytes_max": 256 << 10, "request_bytes_max": 256 << 20})
        elif words[0] == "endpoints":
            self.answer(200, {}) if words[1] == "here" else self.error(404, "unknown_endpoint", "there is no endpoint %s" % words[1])
        elif words[0] == "functions":
            state.functions[words[1]] = (KINDS[self.headers["X-Pilotfish-Kind"]], body)
            self.answer(200)
        elif len(words) == 4 and words[2] == "payloads":
            self.payload((int(words[1]), words[3]), body)
        elif self.command == "PUT":
            self.put_job(words[1], json.loads(body))
        else:
            job = state.jobs.get(int(words[1]))
            if job is None:
                self.error(404, "unknown_job", "there is no job j%s" % words[1])
            elif len(words) == 2:
                self.answer(200, {"job": int(words[1]), "key": job["key"], "open": job["open"], "spec": job["spec"],
                                  "counts": {"total": job["count"]}})
            elif words[2] == "tasks":
                self.append(int(words[1]), job, int(parse_qs(query)["first"][0]), body)
            elif words[2] == "close":
                job["open"] = False
                self.answer(200, {"tasks": job["count"]})
            else:
                self.cancel(int(words[1]), json.loads(body))

    def payload(self, key: Tuple[int, str], body: bytes) -> None:
        """PUT and GET of a large payload."""
        payloads = self.state.payloads
        if self.command == "PUT":
            assert hashlib.blake2b(body, digest_size=32).hexdigest() == key[1] and len(body) > 256 << 10
            payloads[key] = body
            self.answer(200, {"bytes": len(body)})
        elif key not in payloads:
            self.error(404, "unknown_payload", "there is no payload %s" % key[1])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(payloads[key])))
            self.end_headers()
            self.wfile.write(payloads[key])

    def put_job(self, key: str, request: Dict[str, Any]) -> None:
        """PUT jobs/{key}."""
        state = self.state
        if state.refuse_jobs is not None:
            self.answer(*state.refuse_jobs)
            return
        for number, job in state.jobs.items():
            if job["key"] == key:
                self.answer(200, {"job": number, "tasks": job["count"], "repeated": True})
                return
        number = len(state.jobs) + 1
        state.jobs[number] = {"key": key, "spec": request["spec"], "open": request["open"], "count": 0}
        self.answer(200, {"job": number, "tasks": 0, "repeated": False})

    def append(self, number: int, job: Dict[str, Any], first: int, body: bytes) -> None:
        """POST tasks."""
        state = self.state
        assert body[:4] == b"PFT1" and self.headers["Content-Type"] == "application/vnd.pilotfish.tasks"
        count, = struct.unpack_from("<I", body, 4)
        lens = struct.unpack_from("<%dI" % count, body, 8)
        at = 8 + 4 * count
        assert len(body) == at + sum(length & ~LARGE for length in lens)
        if not job["open"]:
            self.error(409, "conflict", "job j%d is closed" % number)
            return
        if first > job["count"]:
            self.error(409, "conflict", "a hole")
            return
        items = []
        for length in lens:
            item = body[at:at + (length & ~LARGE)]
            at += length & ~LARGE
            if length & LARGE:
                if (number, item[:32].hex()) not in state.payloads:
                    self.error(404, "unknown_payload", "it was not put")
                    return
                item = state.payloads[number, item[:32].hex()]
            assert length & LARGE or length <= 256 << 10
            items.append(item)
        for position, item in enumerate(items, first):
            if position >= job["count"]:
                state.queue.append((number, position, item))
                job["count"] += 1
        state.lock.notify_all()
        if state.cut_after_append:
            state.cut_after_append -= 1
            self.close_connection = True
            return
        self.answer(200, {"tasks": job["count"]})

    def cancel(self, number: int, request: Dict[str, Any]) -> None:
        """POST cancel: only what is queued here."""
        state = self.state
        wanted = {p for first, count in request["tasks"] for p in range(first, first + count)}
        gone = sorted(i for j, i, _item in state.queue if j == number and i in wanted)
        state.queue = [t for t in state.queue if not (t[0] == number and t[1] in wanted)]
        for index in gone:
            state.add_outcome(number, index, 9, b"", b'{"message":"cancelled"}')
        ranges: List[List[int]] = []
        for index in gone:
            if ranges and sum(ranges[-1]) == index:
                ranges[-1][1] += 1
            else:
                ranges.append([index, 1])
        self.answer(200, {"cancelled": ranges, "asked": 0})

    def outcomes(self, query: Dict[str, str]) -> None:
        """GET outcomes, as columns, for ever."""
        state = self.state
        at = 0
        if "after" in query:
            log_id, seq = (int(part, 16) for part in query["after"].split("-"))
            if log_id != state.log_id:
                self.error(410, "other_log", "that cursor is of another log")
                return
            at = seq
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        server = state.server
        while True:
            with state.lock:
                log_id = state.log_id
                state.lock.wait_for(lambda: not state.running or state.server is not server or len(state.outcomes) > at
                                    or state.log_id != log_id)
                if not state.running or state.server is not server or state.log_id != log_id:
                    self.close_connection = True
                    return
                rows = state.outcomes[at:]
                at = len(state.outcomes)
                jobs = state.jobs
                rows = [row for row in rows if query.get("job") == str(row[0])
                        or query.get("group") == str(jobs[row[0]]["spec"]["group"])]
            frame = encode_outcomes(log_id, at, rows)
            for part in (frame[:11], frame[11:]):  # frames and chunks need not agree
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def encode_outcomes(log_id: int, seq: int, rows: List[Tuple[int, int, int, bytes, bytes]]) -> bytes:
    """One frame of columns."""
    count = len(rows)
    jobs, indexes, kinds, values, errors = zip(*rows) if rows else ((), (), (), (), ())
    body = struct.pack("<IQQ", count, log_id, seq) + struct.pack("<%dQ" % count, *jobs) + struct.pack("<%dI" % count, *indexes)
    body += bytes(kinds) + struct.pack("<%dI" % (2 * count), *[5] * (2 * count))
    body += struct.pack("<%dI" % count, *[len(value) | LARGE * isinstance(value, Named) for value in values]) + struct.pack("<%dI" % count, *map(len, errors))
    body += b"".join(values) + b"".join(errors)
    return b"PFO1" + struct.pack("<I", len(body)) + body
