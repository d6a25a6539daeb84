"""The daemon as an operator meets it: who may ask, bad input, swaps, restarts, an orderly end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from outrider_shared.packs import bundled_pack
from support.daemon import CHAT, call, cloud, daemon, send

ASK = {"messages": CHAT, "temperature": 0, "max_tokens": 8}


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"Host": "evil.example"}, "host_not_allowed"), ({"Host": "evil.example:80"}, "host_not_allowed"),
     ({"Origin": "https://evil.example"}, "origin_not_allowed"), ({"Origin": "null"}, "origin_not_allowed")],
)  # fmt: skip
def test_pages_of_the_web_get_nothing(device, headers, code):
    """DNS rebinding and cross-site requests are refused before anything is read."""
    status, body = call(device, body=ASK, **headers)
    assert (status, body["error"]["code"]) == (403, code)


def test_a_request_has_an_id_in_its_answer_and_in_the_log(device):
    """Its own, or the client's if that can stand in a header and a log."""
    given = send(device, body=ASK, **{"X-Request-Id": "of-the-client-1"}).headers["x-request-id"]
    made = [
        send(device, body=ASK, **{"X-Request-Id": wrong}).headers["x-request-id"] for wrong in ("", "a b", "x" * 200)
    ]
    refused = send(device, body=b"{").headers["x-request-id"]
    assert given == "of-the-client-1"
    assert len({*made, refused}) == 4
    assert all(name.startswith("req_") for name in (*made, refused))
    lines = [json.loads(line) for line in device.output.splitlines() if line.startswith("{")]
    asked = [line for line in lines if line["event"] == "asked"]
    assert [line["request_id"] for line in asked[-4:]] == [given, *made]


def test_the_version_is_told(device):
    status, body = call(device, "GET", "/version")
    assert (status, list(body)) == (200, ["version"])
    assert (
        f'outrider_edge_build_info{{version="{body["version"]}"}} 1.0'
        in send(device, "GET", "/metrics").read().decode()
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": 1}', b"\xff\xfe", b"[" * 100_000, b'{"temperature": NaN}',
     b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1e999}'],
)  # fmt: skip
def test_malformed_bodies_are_the_callers_fault(device, body):
    """Whatever is sent: a 400 with a sentence."""
    status, answer = call(device, body=body)
    assert status == 400
    assert answer["error"]["message"]


def test_huge_bodies_are_refused_unread(device):
    """By their length when they tell it, and as soon as they are over when they do not."""
    assert call(device, body=b"{", **{"Content-Length": str(1 << 40)})[0] == 413
    place = urlsplit(device.address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        raw.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"%x\r\n" % 65536 + b"a" * 65536 + b"\r\n"
        answer = b""
        try:
            for _ in range(100):
                raw.sendall(chunk)
        except OSError:
            pass
        try:
            answer = raw.recv(65536)
        except OSError:
            pytest.skip("the connection was reset before the answer was read")
    assert b" 413 " in answer.splitlines()[0]


def test_slow_reader_does_not_hold_the_cloud(device):
    """A client that reads nothing: its session ends all the same, and the answer waits for it."""
    place = urlsplit(device.address)
    body = json.dumps({**ASK, "stream": True, "max_tokens": 60, "ignore_eos": True}).encode()
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        time.sleep(3)
        received = b""
        while part := raw.recv(4096):
            received += part
    assert b"data: [DONE]" in received


def test_swap_and_drain(tmp_path, verifier):
    """SIGHUP puts a new pack in place while answers run on; a broken pack is refused; SIGTERM finishes what is open."""
    pack = tmp_path / "pack"
    shutil.copytree(bundled_pack(), pack)
    config = tmp_path / "edge.toml"
    config.write_text(f'[draft]\npack = "{pack}"\n[serve]\ndrain_s = 60\n')
    with daemon(tmp_path, verifier.address, "--config", str(config), "--api-key-file", str(_key(tmp_path))) as device:
        key = {"Authorization": "Bearer secret"}
        assert call(device, body=ASK)[0] == 401
        before = call(device, body=ASK, **key)[1]["choices"][0]["message"]
        (pack / "model.onnx").write_bytes(b"broken")
        device.process.send_signal(signal.SIGHUP)
        _until(lambda: "the pack was not swapped" in device.output)
        assert call(device, body=ASK, **key)[1]["choices"][0]["message"] == before
        config.write_text('[draft]\npack = "bundled"\n')
        answers = []
        asking = threading.Thread(target=lambda: answers.append(call(device, body={**ASK, "max_tokens": 60}, **key)))
        asking.start()
        device.process.send_signal(signal.SIGHUP)
        _until(lambda: "pack swapped" in device.output)
        asking.join()
        assert answers[0][0] == 200
        assert call(device, body=ASK, **key)[1]["choices"][0]["message"] == before
        late = threading.Thread(target=lambda: answers.append(call(device, body={**ASK, "max_tokens": 60}, **key)))
        late.start()
        _until(lambda: call(device, "GET", "/outrider/status", **key)[1]["sessions"] > 0 or len(answers) > 1)
        device.process.send_signal(signal.SIGTERM)
        late.join()
        assert answers[1][0] == 200
        assert device.process.wait(60) == 0
        assert "light" not in device.output.lower(), "prompts are not logged"


def test_what_is_not_complete_when_the_device_stops_says_so(tmp_path):
    """Whole or streamed, behind the time that answers are given to finish: an error in words, and no traceback."""
    with daemon(tmp_path, "127.0.0.1:1", "--offline", "wait", "--drain-s", "0.1") as device:
        answers, streamed = {}, {**ASK, "stream": True}
        asking = [
            threading.Thread(target=lambda: answers.update(whole=call(device, body=ASK))),
            threading.Thread(target=lambda: answers.update(streamed=send(device, body=streamed).read())),
        ]
        for thread in asking:
            thread.start()
        _until(lambda: call(device, "GET", "/outrider/status")[1]["sessions"] == 2)
        device.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join()
        assert device.process.wait(60) == 0
    status, body = answers["whole"]
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert "stopped before the answer was complete" in body["error"]["message"]
    assert "stopped before the answer was complete" in answers["streamed"].decode()
    assert "Traceback" not in device.output


def test_cloud_that_dies_in_mid_answer_changes_nothing(tmp_path, verifier):
    """Another cloud takes over, or the same comes back, drafts shown or not: the texts are those of no fault."""
    numbers = {"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 30}
    form = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}}
    free = {**ASK, "max_tokens": 48, "stream": True, "ignore_eos": True}
    shaped = {**ASK, "max_tokens": 48, "stream": True, "response_format": form, "temperature": 1.0, "seed": 5}
    watched = {**free, "outrider": {"details": True}}
    after = {"OUTRIDER_EDGE_CLOUD_OFFLINE_AFTER_S": "0.5", "OUTRIDER_EDGE_CLOUD_SETTLE_S": "240"}
    with (
        cloud(tmp_path, "--exact", "--pace-step-ms", "150") as first,
        daemon(tmp_path, first.address, "--cloud", verifier.address) as covered,
        daemon(tmp_path, first.address, "--offline", "wait") as patient,
        daemon(tmp_path, first.address, "--offline", "draft", **after) as alone,
    ):
        asked = [(covered, free), (patient, free), (patient, shaped), (alone, watched)]
        answers = [send(device, body=body) for device, body in asked]
        begun = [b"".join(answer.readline() for _ in range(4)) for answer in answers]
        first.process.kill()
        first.process.wait()
        while b'"unverified":[' not in begun[-1]:
            begun[-1] += answers[-1].readline()
        with cloud(tmp_path, "--exact", listen=first.address):
            whole = [beginning + answer.read() for beginning, answer in zip(begun, answers, strict=True)]
            plain, formed = (_text(send(patient, body=body).read()) for body in (free, shaped))
        assert [_text(stream) for stream in whole] == [plain, plain, formed, plain]
        assert all(b"[DONE]" in stream for stream in whole)
        assert not any(b'"unverified":true' in stream for stream in whole), "all of it was confirmed in the end"


def _text(stream: bytes) -> str:
    lines = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: {")]
    bodies = [json.loads(line) for line in lines]
    assert not any("error" in body for body in bodies), bodies[-1]
    return "".join(body["choices"][0]["delta"].get("content", "") for body in bodies if body["choices"])


def _key(folder):
    path = folder / "key"
    path.write_text("secret\n")
    return path


def _until(condition, most_s: float = 60.0) -> None:
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
