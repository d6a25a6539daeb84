"""The commands as a user runs them: real processes, real sockets, the bundled pair."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OUTRIDER_LOG": "info"}
ANSWER_KEYS = {
    "text", "token_ids", "cloud_steps", "tokens_per_step", "drafted", "accepted", "uplink_bytes", "downlink_bytes",
    "wall_s",
}  # fmt: skip
MESSAGES_PROMPT = "turn on the kitchen light"


def outrider(*arguments: str, side: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    module = {"cloud": "outrider_cloud.cli", "edge": "outrider_edge.cli", "demo": "outrider_edge.demo.cli"}
    command = [sys.executable, "-m", module[side or arguments[0]], *arguments[0 if side else 1 :]]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)


@contextlib.contextmanager
def cloud(tmp_path: Path, *flags: str):
    """A serving cloud; yields its address and process."""
    ready = tmp_path / f"ready{time.monotonic_ns()}"
    command = [sys.executable, "-m", "outrider_cloud.cli", "serve", "--listen", "127.0.0.1:0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready), *flags], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "the cloud did not start"
            time.sleep(0.05)
        yield ready.read_text(), process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A cloud with the bundled target, for the tests that only talk to it."""
    with cloud(tmp_path_factory.mktemp("cloud")) as (where, _):
        yield where


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_edge_generate_gives_the_text_of_cloud_generate(address, temperature):
    """Drafted at the edge or decoded plainly in the cloud: the same tokens, in fewer steps, with the promised keys."""
    common = [
        "--prompt",
        MESSAGES_PROMPT,
        "--chat",
        "--temperature",
        temperature,
        "--seed",
        "7",
        "--max-tokens",
        "48",
        "--json",
    ]
    # `hold`: the cloud waits for the drafts, however slow this machine is.
    drafted = json.loads(outrider("edge", "generate", "--cloud", address, "--pace", "hold", *common).stdout)
    plain = json.loads(outrider("cloud", "generate", *common).stdout)
    assert drafted.keys() >= ANSWER_KEYS
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["text"] == plain["text"]
    # Each step commits what was drafted, at the edge or by the cloud itself, and one token of the target's own.
    by_drafts = drafted["accepted"] + drafted["cloud_lookups"] + drafted["cloud_drafts"]
    assert by_drafts > 0
    assert drafted["cloud_steps"] + by_drafts == plain["cloud_steps"] == len(plain["token_ids"])


def test_an_order_in_the_bundled_house_calls_the_right_device(address):
    """What the README says to try first."""
    asked = ("--system", "bundled", "--prompt", MESSAGES_PROMPT)
    shown = outrider("edge", "generate", "--cloud", address, *asked, "--json")
    answer = json.loads(shown.stdout)
    assert "HassTurnOn" in answer["text"]
    assert "Kitchen Light" in answer["text"]


def test_edge_generate_shows_the_answer_as_it_streams(address):
    """Without --json, the text is printed with a closing line of figures."""
    done = outrider("edge", "generate", "--cloud", address, "--prompt", MESSAGES_PROMPT, "--chat", "--max-tokens", "24")
    assert done.returncode == 0, done.stderr
    assert "per step" in done.stdout


@pytest.mark.parametrize(("temperature", "least"), [("0", 2.5), ("0.8", 2.0)])
def test_demo_tells_both_ways_with_all_keys(temperature, least):
    """`outrider demo --json` answers held-out requests, with the promised keys, tokens per cloud step and bytes."""
    flags = ["--requests", "5", "--temperature", temperature, "--json"]
    done = outrider("demo", *flags, *([] if temperature == "0" else ["--no-exact"]))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {*ANSWER_KEYS, "plain", "identical_to_plain"} <= result.keys()
    assert result["plain"].keys() >= ANSWER_KEYS
    assert result["identical_to_plain"] is True
    assert result["plain"]["tokens_per_step"] == 1.0
    assert result["tokens_per_step"] >= least
    assert result["draft_bytes"] <= 3 * result["drafted"] + 24 * result["draft_messages"]
    if "exact" in result:
        assert result["exact"]["identical_to_plain"] is True


def test_demo_answers_a_prompt_of_ones_own():
    """`--prompt` asks the assistant, `--seed` and `--temperature` choose the answer."""
    flags = [
        "--prompt",
        "switch off the fan",
        "--seed",
        "3",
        "--temperature",
        "0.8",
        "--max-tokens",
        "32",
        "--no-exact",
        "--json",
    ]
    first, second = (json.loads(outrider("demo", *flags).stdout) for _ in range(2))
    assert first["token_ids"] == second["token_ids"]
    assert first["identical_to_plain"]


def test_sigterm_drains_and_ends_in_order(tmp_path):
    """SIGTERM: the service says that it drains, and ends with status 0."""
    with cloud(tmp_path) as (_, process):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "draining" in errors
        assert "Traceback" not in errors


NOWHERE = ["edge", "generate", "--cloud", "127.0.0.1:1"]
REFUSED = {
    "plaintext beyond loopback": (["cloud", "serve", "--listen", "0.0.0.0:0"], 2, "--insecure"),
    "address that is none": (["cloud", "serve", "--listen", "nowhere"], 2, "HOST:PORT"),
    "model that is none": (["cloud", "serve", "--model", "/nonexistent"], 2, "config.json"),
    "draft that is none": (["cloud", "serve", "--draft", "/nonexistent"], 2, "the draft /nonexistent does not exist"),
    "half a key pair": (["cloud", "serve", "--tls-cert", "/nonexistent"], 2, "belong together"),
    "unreachable cloud": ([*NOWHERE, "--prompt", "x", "--offline-after", "1s"], 1, "127.0.0.1:1"),
    "answer past its deadline": ([*NOWHERE, "--prompt", "x", "--deadline-s", "1"], 1, "within 1 s"),
    "pack that is none": ([*NOWHERE, "--draft", "/nonexistent", "--prompt", "x"], 1, "/nonexistent"),
    "negative temperature": (["cloud", "generate", "--prompt", "x", "--temperature", "-1"], 2, "temperature"),
    "top-p zero": ([*NOWHERE, "--prompt", "x", "--top-p", "0"], 2, "top_p"),
    "negative seed": (["cloud", "generate", "--prompt", "x", "--seed", "-1"], 2, "seed"),
    "empty prompt": (["cloud", "generate", "--prompt", ""], 2, "empty"),
    "prompt over the context": (["cloud", "generate", "--prompt", "light " * 3000], 2, "context"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_command_lines_end_with_a_sentence(name):
    """A wrong flag or file: one sentence that says what to do, the right status, no traceback."""
    arguments, status, word = REFUSED[name]
    done = outrider(*arguments)
    assert done.returncode == status, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_json_when_json_was_asked_for():
    """With --json an error is an object on standard output, too."""
    done = outrider("cloud", "generate", "--prompt", "x", "--temperature", "-1", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "invalid_parameter"


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _certificate(name: str, key, issuer: str, issuer_key, *, authority: bool = False) -> bytes:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Path:
    """A CA, a server and a device certificate, and one of a stranger's CA."""
    folder = tmp_path_factory.mktemp("pki")
    for authority, members in (("ca", ("server", "device-1")), ("stranger", ("intruder",))):
        root = _key()
        (folder / f"{authority}.pem").write_bytes(_certificate(authority, root, authority, root, authority=True))
        for member in members:
            key = _key()
            (folder / f"{member}.pem").write_bytes(_certificate(member, key, authority, root))
            (folder / f"{member}.key").write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
    return folder


def test_mutual_tls_lets_in_who_has_a_certificate_and_nobody_else(pki, tmp_path):
    """mTLS: the device of our CA gets its answer; plaintext, no certificate or a stranger's get a sentence."""
    flags = ["--tls-cert", pki / "server.pem", "--tls-key", pki / "server.key", "--tls-client-ca", pki / "ca.pem"]
    with cloud(tmp_path, *map(str, flags)) as (address, _):
        where = address.replace("127.0.0.1", "localhost")
        ask = [
            "edge",
            "generate",
            "--cloud",
            where,
            "--prompt",
            MESSAGES_PROMPT,
            "--chat",
            "--max-tokens",
            "8",
            "--deadline-s",
            "3",
            "--json",
        ]
        trust = ["--tls-ca", str(pki / "ca.pem")]
        done = outrider(*ask, *trust, "--tls-cert", str(pki / "device-1.pem"), "--tls-key", str(pki / "device-1.key"))
        assert done.returncode == 0, done.stderr
        stranger = ["--tls-cert", str(pki / "intruder.pem"), "--tls-key", str(pki / "intruder.key")]
        for wrong in ([], trust, [*trust, *stranger], ["--tls-ca", str(pki / "stranger.pem")]):
            done = outrider(*ask, *wrong, "--offline-after", "100ms")
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert json.loads(done.stdout)["error"]["code"] in {"unavailable", "deadline"}


def chat(address: str, *lines: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Say those lines through a pipe to a chat that talks to a cloud directly."""
    command = [sys.executable, "-m", "outrider_edge.cli", "chat", "--cloud", address, "--no-history"]
    typed = "".join(f"{line}\n" for line in lines)
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, env=environment or ENVIRONMENT, timeout=240, check=False
    )


def test_a_chat_through_a_pipe_answers_and_keeps_commands_apart(address, tmp_path):
    saved = tmp_path / "talk.json"
    result = chat(address, MESSAGES_PROMPT, "/stats", f"/save {saved}", "/reset", "/quit", "never read")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") >= 1
    assert "\x1b[" not in result.stdout, "no colours where nobody sees them"
    assert "tokens per cloud step" in result.stderr
    assert MESSAGES_PROMPT in saved.read_text()


def test_an_unknown_command_of_a_chat_is_told_and_fails_a_script(address):
    result = chat(address, "/nosuch", "/quit")
    assert result.returncode == 1
    assert "/nosuch" in result.stderr
    assert "/help" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_chat_on_a_terminal_streams_an_answer(address, no_color):
    """A real pseudo-terminal: the prompt, the answer, colours unless they are not wanted, a clean end."""
    main, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "outrider_edge.cli", "chat", "--cloud", address, "--no-history", "--pace", "hold"],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**ENVIRONMENT, "TERM": "xterm-256color", "NO_COLOR": no_color},
    )
    os.close(child)
    try:
        read_until(main, b"\x1b[?2004h")  # the line editor is ready
        os.write(main, MESSAGES_PROMPT.encode() + b"\r")
        shown = read_until(main, b"cloud steps")
        os.write(main, b"/quit\r")
        assert process.wait(60) == 0
        assert (b"\x1b[32m" in shown) is not bool(no_color)
    finally:
        process.kill()
        process.wait()
        os.close(main)


def read_until(terminal: int, mark: bytes, limit_s: float = 120.0) -> bytes:
    """What a terminal showed up to a mark."""
    seen, end = b"", time.monotonic() + limit_s
    while mark not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.5)[0]:
            seen += os.read(terminal, 65536)
            if b"\x1b[6n" in seen[-200:]:
                os.write(terminal, b"\x1b[1;1R")
    return seen
