"""Hostile requests over a real socket: none gets a 500, none hangs, and the next good request is answered."""

from __future__ import annotations

import asyncio
import gzip
import json
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra serve")
pytest.importorskip("uvicorn", reason="the server's tests need the extra serve")

from serving.fakes import FakeService

from trunkline.serving.app import create_app
from trunkline.serving.door import SPARE
from trunkline.serving.limits import Limits
from trunkline.serving.run import event_loop, http_server

LIMIT = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GOOD = b'{"inputs":["wake me at seven"],"tasks":["intent"]}'
SECONDS = 0.4
"""What a head or a body may take here."""

Sent = bytes | list[bytes | float]  # at once, or in pieces with pauses of so many seconds


@dataclass
class Server:
    """A server in a thread, over a service that answers from no model."""

    address: tuple[str, int]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def send(self, sent: Sent) -> bytes:
        """Everything that comes back until the server closes, or has answered and waits."""
        with self.connect() as client:
            try:
                for piece in [sent] if isinstance(sent, bytes) else sent:
                    if isinstance(piece, bytes):
                        client.sendall(piece)
                    else:
                        time.sleep(piece)
            except ConnectionError:
                pass  # it would not hear all of it
            return received(client)

    def status(self, sent: Sent) -> int | None:
        """The first status that comes back, None where the connection just ends."""
        answer = self.send(sent).removeprefix(CONTINUE)
        assert answer[:9] in (b"", b"HTTP/1.1 "), answer[:200]
        return int(answer[9:12]) if answer else None


def received(client: socket.socket) -> bytes:
    answer = b""
    try:
        while True:
            found = client.recv(1 << 16)
            answer += found
            if not found or complete(answer):
                return answer
    except ConnectionError:
        return answer


def complete(answer: bytes) -> bool:
    """Whether a whole response has come."""
    head, found, body = answer.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found) and len(body) >= int(lengths[0] if lengths else 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(Limits(body_bytes=LIMIT, items=32, head_seconds=SECONDS, body_seconds=SECONDS)) as made:
        yield made


@contextmanager
def running(limits: Limits) -> Iterator[Server]:
    http = http_server(create_app(FakeService(limits=limits)), limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with asyncio.Runner(loop_factory=event_loop) as runner:
                runner.run(http.serve(sockets=[listening]))

        thread = threading.Thread(target=run)
        thread.start()
        yield Server(listening.getsockname())
        http.should_exit = True
        thread.join()


def request(body: bytes, path: str = "/v1/predict", method: str = "POST", **headers: str | None) -> bytes:
    """A request with its length and type, unless `headers` say otherwise; None leaves one out."""
    usual: dict[str, str | None] = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body))}
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in usual.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def predict(**body: Any) -> bytes:
    return request(json.dumps({"inputs": ["a"], **body}).encode())


def infer(body: dict[str, Any], tail: bytes = b"", length: str | None = None) -> bytes:
    head = json.dumps(body).encode()
    said = str(len(head)) if length is None else length
    return request(head + tail, "/v2/models/intent/infer", Inference_Header_Content_Length=said)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], **fields}]}


def sized(size: object) -> dict[str, Any]:
    return tensor(parameters={"binary_data_size": size})


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request(b"", Content_Length=None, Transfer_Encoding="chunked") + body + end


def packed(body: bytes, encoding: str = "gzip") -> bytes:
    return request(body, Content_Encoding=encoding)


BOMB = gzip.compress(b"[" * (64 << 20), 9)
RAW = zlib.compressobj(wbits=-15)
HOSTILE: dict[str, tuple[Sent, int | None]] = {
    # JSON
    "empty": (request(b""), 422),
    "white space": (request(b" \n\t "), 422),
    "null": (request(b"null"), 422),
    "a number": (request(b"5"), 422),
    "a string": (request(b'"inputs"'), 422),
    "an array": (request(b"[]"), 422),
    "cut short": (request(b'{"inputs":["a'), 422),
    "two documents": (request(GOOD + GOOD), 422),
    "a comment": (request(b'{"inputs":["a"]} // hello'), 422),
    "deep arrays": (request(b"[" * 60_000), 422),
    "deep objects": (request(b'{"inputs":' * 6_000), 422),
    "deep and closed": (request(b'{"inputs":' + b"[" * 25_000 + b"]" * 25_000 + b"}"), 422),
    "deep enough to parse": (request(b'{"inputs":' + b"[" * 400 + b"]" * 400 + b"}"), 200),
    "NaN": (request(b'{"inputs":[NaN]}'), 422),
    "Infinity": (request(b'{"inputs":["a"],"deadline_ms":Infinity}'), 422),
    "a float that overflows": (request(b'{"inputs":[{"text":"a","words":[[0,1e999]]}]}'), 422),
    "a number of 5000 digits": (request(b'{"inputs":["a"],"deadline_ms":' + b"9" * 5000 + b"}"), 422),
    "a deadline of 400 digits": (request(b'{"inputs":["a"],"deadline_ms":' + b"9" * 400 + b"}"), 422),
    "a negative deadline": (predict(deadline_ms=-1), 422),
    "a deadline too short": (predict(deadline_ms=1e-300), None),
    "a deadline beyond all time": (predict(deadline_ms=1e308), 200),
    "a boolean deadline": (predict(deadline_ms=True), 422),
    "a key twice": (request(b'{"inputs":["a"],"inputs":["b"]}'), 422),
    "a key twice within": (request(b'{"inputs":[{"text":"a","text":"b"}]}'), 422),
    "a key of 60 KB": (request(b'{"' + b"inputs" * 10_000 + b'":1}'), 422),
    "5000 keys": (request(json.dumps({f"k{number}": 0 for number in range(5000)}).encode()), 422),
    "keys with a meaning elsewhere": (request(b'{"inputs":["a"],"__proto__":{},"__class__":"x"}'), 422),
    # Unicode
    "half a surrogate pair": (request(b'{"inputs":["\\ud800"]}'), 200),
    "half a surrogate pair in a key": (request(b'{"inputs":["a"],"\\udfff":1}'), 422),
    "half a surrogate pair in a key of an input": (request(b'{"inputs":[{"text":"a","\\udfff":1}]}'), 200),
    "half a surrogate pair as a task": (request(b'{"inputs":["a"],"tasks":["\\ud800"]}'), 404),
    "a surrogate in UTF-8": (request(b'{"inputs":["\xed\xa0\x80"]}'), 422),
    "an overlong form": (request(b'{"inputs":["\xc0\x80"]}'), 422),
    "UTF-16": (request(GOOD.decode().encode("utf-16")), 422),
    "a byte order mark": (request(b"\xef\xbb\xbf" + GOOD), 422),
    "null characters": (request(b'{"inputs":["\\u0000\\u0000"]}'), 200),
    "a control character": (request(b'{"inputs":["a\x01"]}'), 422),
    # Values
    "inputs is an object": (predict(inputs={"text": "a"}), 422),
    "inputs is a text": (predict(inputs="a"), 422),
    "no inputs": (predict(inputs=[]), 422),
    "inputs of all sorts": (predict(inputs=[None, 1, 0.5, True, [], {}, [[]], ["a"], {"text": None}]), 200),
    "5,000 inputs": (predict(inputs=[0] * 5_000), None),
    "a text of 60 KB": (predict(inputs=["a" * 60_000]), 200),
    "a text of marks": (predict(inputs=["\u0301" * 5_000]), 200),
    "words that run backwards": (predict(inputs=[{"text": "abc", "words": [[2, 1]]}]), 200),
    "words outside the text": (predict(inputs=[{"text": "abc", "words": [[-5, 10**18]]}]), 200),
    "words that are none": (predict(inputs=[{"text": "abc", "words": {"0": 1}}]), 200),
    "words by the thousand": (predict(inputs=[{"text": "abc", "words": [[0, 1]] * 5_000}]), 200),
    "a speed of 5000 digits": (request(b'{"inputs":["a"],"speed":' + b"9" * 5000 + b"}"), 422),
    "a speed of 4000 digits": (request(b'{"inputs":["a"],"speed":' + b"9" * 4000 + b"}"), 422),
    "a speed of 60 KB": (predict(speed="1" * 60_000), 422),
    "a speed that nests": (request(b'{"inputs":["a"],"speed":' + b"[" * 400 + b"]" * 400 + b"}"), 422),
    "speeds of 2,000 tasks": (predict(speed={f"t{number}": 0.5 for number in range(2000)}), 422),
    "a speed of a task of 60 KB": (predict(speed={"intent" * 10_000: 0.5}), None),
    "a speed of half a surrogate pair": (request(b'{"inputs":["a"],"speed":{"\\ud800":0.5}}'), 422),
    "a task of 60 KB": (predict(tasks=["intent" * 10_000]), None),
    "5,000 tasks": (predict(tasks=[f"t{number}" for number in range(5000)]), 404),
    "5,000 tasks that are none": (predict(tasks=[0] * 5000), 422),
    "tasks in tasks": (predict(tasks=[["intent"]]), 422),
    "a path for a task": (predict(tasks=["../../etc/passwd"]), 404),
    "TEI: a number": (request(b'{"inputs":5}', "/tasks/intent/predict"), 422),
    "TEI: deep inputs": (request(b'{"inputs":' + b"[" * 400 + b"]" * 400 + b"}", "/tasks/intent/predict"), 422),
    "TEI: texts of all sorts": (request(b'{"query":"a","texts":["b",5,null]}', "/tasks/same/rerank"), 422),
    "TEI: half a surrogate pair": (request(b'{"inputs":[["\\ud800"]]}', "/tasks/intent/predict"), 422),
    "admin, which is off": (request(b"{}", "/admin/release"), 404),
    # Bodies
    "plain text": (request(GOOD, Content_Type="text/plain"), 415),
    "a form": (request(b"--x\r\n\r\n--x--", Content_Type="multipart/form-data; boundary=x"), 415),
    "no type": (request(GOOD, Content_Type=None), 200),
    "a type of odd bytes": (request(GOOD, Content_Type="\x80\xff;=;="), 415),
    "a bomb": (packed(BOMB), 413),
    "a bomb in chunks": (
        chunked(*(BOMB[at : at + 4096] for at in range(0, len(BOMB), 4096))).replace(
            b"Host: x", b"Host: x\r\nContent-Encoding: gzip"
        ),
        413,
    ),
    "gzip cut short": (packed(gzip.compress(GOOD)[:-9]), 422),
    "gzip damaged": (packed(gzip.compress(GOOD)[:-8] + b"\0" * 8), 422),
    "no gzip": (packed(GOOD), 422),
    "gzip of nothing": (packed(b""), 422),
    "gzip and more": (packed(gzip.compress(GOOD) + b"more"), 422),
    "a thousand empty gzips": (packed(gzip.compress(b"") * 1000), 422),
    "gzip twice": (packed(gzip.compress(gzip.compress(GOOD)), "gzip, gzip"), 415),
    "brotli": (packed(GOOD, "br"), 415),
    "deflate without its head": (packed(RAW.compress(GOOD) + RAW.flush(), "deflate"), 422),
    "too large": (request(b" " * (LIMIT + 1)), 413),
    "far too large": (request(b" " * (20 * LIMIT)), 413),
    "too large in chunks": (chunked(*[b" " * 4096] * 17), 413),
    "far too large in chunks": (chunked(*[b" " * 4096] * 320), 413),
    "a length of 10^18": (request(b"", Content_Length=str(10**18)), 413),
    "a length of 10^30": (request(b"", Content_Length=str(10**30)), 400),
    "a negative length": (request(b"", Content_Length="-1"), 400),
    "a length in words": (request(b"", Content_Length="five"), 400),
    "one length twice": (request(GOOD, content_length=str(len(GOOD))), 400),
    "two lengths": (request(GOOD, content_length="5"), 400),
    "a length and chunks": (request(b"0\r\n\r\n", Transfer_Encoding="chunked"), 400),
    "a chunk without a size": (chunked(end=b"xyz\r\n"), 400),
    "a chunk too large to count": (chunked(end=b"f" * 17 + b"\r\n"), 400),
    "an encoding of the transfer that is none": (request(b"", Content_Length=None, Transfer_Encoding="gzip"), 400),
    "too large, and asks first": (request(b"", Content_Length=str(2 * LIMIT), Expect="100-continue"), 413),
    "good, and asks first": (request(GOOD, Expect="100-continue"), 200),
    # Tensors of the Open Inference Protocol
    "v2: more bytes than there are": (infer(sized(100), b"\1\0\0\0a"), 400),
    "v2: fewer bytes than there are": (infer(sized(2), b"\1\0\0\0a"), 400),
    "v2: a negative size": (infer(sized(-1), b"\1\0\0\0a"), 400),
    "v2: a size in words": (infer(sized("five"), b"\1\0\0\0a"), 400),
    "v2: an element of 4 GB": (infer(sized(5), b"\xff\xff\xff\xffa"), 400),
    "v2: half a length": (infer(sized(2), b"\1\0"), 400),
    "v2: no UTF-8": (infer(sized(5), b"\1\0\0\0\xff"), 400),
    "v2: JSON longer than the body": (infer(sized(5), b"\1\0\0\0a", length="100000"), 400),
    "v2: JSON of negative length": (infer(sized(5), b"\1\0\0\0a", length="-1"), 400),
    "v2: JSON of 20 digits": (infer(sized(5), b"\1\0\0\0a", length="9" * 20), 400),
    "v2: 2^62 rows": (infer(tensor(shape=[2**62], data=["a"])), 413),
    "v2: -1 rows": (infer(tensor(shape=[-1], data=["a"])), 400),
    "v2: a shape without end": (infer(tensor(shape=[1] * 5000, data=["a"])), 400),
    "v2: deep data": (request(b'{"inputs":' + b"[" * 400 + b"]" * 400 + b"}", "/v2/models/intent/infer"), 400),
    "v2: half a surrogate pair": (infer(tensor(data=["\ud800"])), 400),
    "v2: an output by a surrogate": (infer({**tensor(data=["a"]), "outputs": [{"name": "\ud800"}]}), 400),
    "v2: a model by odd bytes": (request(b"", "/v2/models/%FF%00", "GET"), 404),
    # Methods and paths
    "a method that is none": (request(b"", method="HACK"), 400),
    "a method in lower case": (request(b"", method="post"), 400),
    "TRACE": (request(b"", method="TRACE"), 405),
    "CONNECT": (request(b"", "x:80", method="CONNECT"), 400),
    "OPTIONS of everything": (request(b"", "*", method="OPTIONS"), 404),
    "DELETE": (request(b"", method="DELETE"), 405),
    "HEAD": (request(b"", method="HEAD", Connection="close"), 405),
    "the folder above": (request(b"", "/../../etc/passwd", method="GET"), 404),
    "the folder above, hidden": (request(b"", "/ui/%2e%2e/%2e%2e/keys.py", method="GET"), 404),
    "no path": (request(b"", "", method="GET"), 400),
    "slashes": (request(b"", "///", method="GET"), 404),
    "a null character in the path": (request(b"", "/v1/%00", method="GET"), 404),
    "a path that is no UTF-8": (request(b"", "/tasks/%ff/info", method="GET"), 404),
    "a path of odd bytes": (request(b"", "/\xff\xfe", method="GET"), 400),
    "a task of slashes": (request(b'{"inputs":"a"}', "/tasks/%2F..%2F/predict"), 404),
    "a task of nothing": (request(b'{"inputs":"a"}', "/tasks//predict"), 404),
    "a path of 60 KB": (request(b"", "/" + "a" * 60_000, method="GET"), 404),
    "a whole address": (request(b"", "http://elsewhere/v1/model", method="GET"), 200),
    # Heads
    "a host that is none": (request(b"", "/nothing", "GET", Host="[::1"), 404),
    "no host": (request(b"", "/nothing", "GET", Host=None), 404),
    "a header of 10 MB": ([b"GET /v1/model HTTP/1.1\r\nA: ", *[b"a" * (1 << 20)] * 10], 431),
    "100,000 headers": ([b"GET /v1/model HTTP/1.1\r\n", *[b"A: b\r\n" * 1000] * 100], 431),
    "a header without a colon": (b"GET /v1/model HTTP/1.1\r\nHost\r\n\r\n", 400),
    "a null character in a header": (b"GET /v1/model HTTP/1.1\r\nA: b\0c\r\n\r\n", 400),
    "a header on two lines": (b"GET /v1/model HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a request id to split the answer": (request(b"", "/v1/model", "GET", X_Request_Id="a%0d%0aSet-Cookie: b"), 200),
    "a trace that is none": (request(b"", "/v1/model", "GET", traceparent="00-xyz-\x80"), 200),
    "a key of odd bytes": (request(b"", "/v1/model", "GET", Authorization="Bearer \xff\xfe"), 200),
    "HTTP/0.9": (b"GET /v1/model\r\n\r\n", 200),
    "HTTP/9.9": (b"GET /v1/model HTTP/9.9\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400),
    "noise": (bytes(range(256)) * 8, 400),
    "a websocket": (
        request(b"", "/v1/predict", "GET", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13"),
        405,
    ),
    "an upgrade to HTTP/2": (request(GOOD, Connection="Upgrade, HTTP2-Settings", Upgrade="h2c"), 200),
    "an upgrade within a body": (
        request(b'{"inputs":["a"],"tasks":["intent"]\r\nupgrade: }', Connection="Upgrade", uPgRaDe="h2c"),
        422,
    ),
    # Time
    "silence": ([b"", 2 * SECONDS], 408),
    "half a head": ([b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n", 2 * SECONDS], 408),
    "a head by drops": ([piece for byte in b"GET /v1/model HTTP/1.1\r\n" for piece in (bytes([byte]), 0.05)], 408),
    "half a body": ([request(GOOD)[:-5], 2 * SECONDS], 408),
    "a body by drops": ([request(GOOD)[:-50], *[piece for byte in GOOD for piece in (bytes([byte]), 0.05)]], 408),
    "chunks without end": ([chunked(b"{", end=b""), *[b"1\r\n \r\n", 0.05] * 20], 408),
    "less than a good request, then another": ([request(GOOD) + b"POST /v1/pre", 2 * SECONDS], 200),
}


def test_the_hostile_requests_are_many() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_the_next_one_answered(server: Server, name: str) -> None:
    sent, expected = HOSTILE[name]
    started = time.monotonic()
    status = server.status(sent)
    assert time.monotonic() - started < 5
    assert status is None or status < 500 or status == 504
    assert expected in (None, status)
    assert server.status(request(GOOD)) == 200


def test_every_refusal_is_json_that_can_be_read(server: Server) -> None:
    for name in ("half a surrogate pair in a key", "a bomb", "brotli", "half a body", "v2: half a length", "slashes"):
        head, _, body = server.send(HOSTILE[name][0]).partition(b"\r\n\r\n")
        assert b"content-type: application/json" in head.lower()
        assert b"x-request-id: " in head.lower()
        assert json.loads(body)["error"]


@pytest.mark.parametrize("name", ["a task of 60 KB", "a speed of a task of 60 KB", "a key of 60 KB"])
def test_a_refusal_shows_no_more_of_a_name_than_its_beginning(server: Server, name: str) -> None:
    head, _, body = server.send(HOSTILE[name][0]).partition(b"\r\n\r\n")
    assert b" 4" in head[:12]
    assert len(json.loads(body)["error"]["message"]) < 300


def test_one_connection_carries_on_after_a_refusal(server: Server) -> None:
    with server.connect() as client:
        for sent, status in (
            (request(b"{"), 422),
            (request(GOOD), 200),
            (request(b"", "/no"), 404),
            (request(GOOD), 200),
        ):
            client.sendall(sent)
            assert int(received(client)[9:12]) == status


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    with server.connect() as client:
        client.sendall(
            request(GOOD) + request(b"{") + request(b"", "/no", "GET") + request(GOOD) + b"\0garbage\r\n\r\n"
        )
        answer = b""
        while found := client.recv(1 << 16):
            answer += found
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses[:1] == [200] or statuses == [400]
    assert all(status < 500 for status in statuses)
    assert server.status(request(GOOD)) == 200


def test_clients_that_vanish_leave_no_trace(server: Server) -> None:
    for cut in (b"", b"POST /v1/pre", request(GOOD)[:-5], request(GOOD), packed(BOMB)[:1000]):
        for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):  # with a reset, and with a farewell
            with server.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.sendall(cut)
    assert server.status(request(GOOD)) == 200


def test_a_hundred_connections_that_wait_keep_nobody_out(server: Server) -> None:
    waiting = [server.connect() for _ in range(100)]
    try:
        for client in waiting:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\n")
        assert server.status(request(GOOD)) == 200
        for client in waiting:
            assert received(client)[9:12] == b"408"
    finally:
        for client in waiting:
            client.close()


@pytest.mark.parametrize("last", [b"", b"GET /v1/model"])
def test_a_client_that_asks_and_never_reads_is_let_go(last: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running(Limits(reply_seconds=SECONDS)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)
        client.sendall(request(b"", "/openapi.json", "GET") * 500 + last)  # far more than the system holds of replies
        ended = select.poll()
        ended.register(client, 0)
        assert ended.poll(10_000)
        assert server.status(request(GOOD)) == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_never_reads_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trunkline.serving.run._CLOSING_SECONDS", SECONDS)
    with socket.socket() as client:
        with running(Limits()) as server:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.address)
            client.sendall(request(b"", "/openapi.json", "GET") * 500)
            assert client.recv(1) == b"H"
            started = time.monotonic()
        assert time.monotonic() - started < 5
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_one_connection_too_many_is_told_so_and_probes_are_answered() -> None:
    limits = Limits(connections=4)
    with running(limits) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(limits.connections)]
        for client in held:
            client.sendall(request(GOOD))
            assert received(client)[9:12] == b"200"
        head, _, body = server.send(request(GOOD)).partition(b"\r\n\r\n")
        assert head[9:12] == b"503"
        assert b"\r\nretry-after: 1\r\n" in head.lower()
        assert b"\r\nconnection: close\r\n" in head.lower()
        assert json.loads(body)["error"]["message"].startswith("4 connections are open already")
        assert server.status(request(b'{"inputs":[]}', "/v2/models/intent/infer")) == 503
        extra = [stack.enter_context(server.connect()) for _ in range(SPARE + 8)]
        for path in ("/health/ready", "/health/live", "/v2/health/ready", "/metrics"):
            head, _, body = server.send(request(b"", path, "GET")).partition(b"\r\n\r\n")
            assert head[9:12] == b"200"
            assert b"connection: close" in head.lower()
        assert [received(client) for client in extra[:8]] == [b""] * 8  # the oldest made room
        held[0].sendall(request(GOOD))
        assert received(held[0])[9:12] == b"200"
        held.pop().close()
        deadline = time.monotonic() + 10
        while server.status(request(GOOD)) != 200:  # until the server has heard of it
            assert time.monotonic() < deadline
