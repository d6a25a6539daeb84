"""Padded sessions over TLS on real sockets, with a listener on the network in between."""

from __future__ import annotations

import asyncio
import collections

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_cloud.service.config import TlsFiles
from outrider_edge.bench.processes import make_identity
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.link.padded_link import PaddedStreams
from outrider_edge.session.events import GenerateRequest
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.emulator.proxy import LinkProxy
from outrider_shared.errors import ParameterError, ProtocolError
from outrider_shared.padding import BlockReader, BlockWriter, Padding
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb
from support.drafters import OracleDrafter, RandomDrafter
from support.service import client, collect, open_message, raw_stream, read_all, serving

PADDING = Padding(block_bytes=200, interval_s=0.02, round_s=0.6)
# A block as a TLS record: fields and lengths of its message, gRPC's 5 bytes, HTTP/2's 9, TLS 1.3's 5 + 1 + 16.
RECORD = PADDING.block_bytes + 3 + 3 + 5 + 9 + 22
# HTTP/2's updates of windows (13 bytes) and pings (17) ride along with a block at times, or pass by themselves.
BLOCKS = {RECORD + 13 * windows + 17 * pings for windows in range(4) for pings in range(3)}
SMALL = 22 + 4 * 13 + 2 * 17


def _request(seed: int, tokens: int) -> GenerateRequest:
    return GenerateRequest((seed % 90, 2, 3), tokens, SamplingParams(0.9, top_k=40, seed=seed), ignore_eos=True)


def _plain(model, request) -> list[int]:
    engine = build_engine(model, EngineConfig(kv_tokens=4096))
    return generate(engine, request.prompt, request.params, request.max_tokens, ignore_eos=request.ignore_eos).tokens


def test_a_listener_hears_blocks_of_one_size_whatever_is_said(tiny, tmp_path):
    """A long answer whose drafts are accepted and a short one without any: the same sizes, as many per second."""
    identity = make_identity(tmp_path)
    cases = {"accepted": (_request(3, 60), True), "refused": (_request(7, 9), False)}

    async def hear(address, request, drafter, padded):
        async with LinkProxy(address, LinkProfile(0.005)) as proxy:
            proxy.listen()
            async with GrpcConnector(proxy.address, identity.client) as connector:
                device = client(tiny, connector, lambda: drafter, padded=padded)
                tokens, finished = await collect(device, request)
                if padded is not None:
                    await padded.close()
            return tokens, finished, proxy.heard

    async def run():
        heard = {}
        tls = TlsFiles(identity.certificate, identity.key)
        async with serving(tiny, tls=tls) as (address, _):
            for name, (request, right) in cases.items():
                text = _plain(tiny, request)
                oracle = OracleDrafter(1, tiny.vocabulary, [*request.prompt, *text], lies=0.0)
                drafter = oracle if right else RandomDrafter(1, tiny.vocabulary)
                for padded in (None, PaddedStreams(PADDING)):
                    tokens, finished, records = await hear(address, request, drafter, padded)
                    assert tokens == text
                    assert finished.totals.connects == 1
                    heard[name, padded is not None] = records
        return heard

    heard = asyncio.run(run())
    for name in cases:
        for up in (True, False):
            plain = {r.bytes for r in heard[name, False] if r.up is up}
            assert len(plain - BLOCKS) >= 6, "without padding, sizes vary with what is said"
            sizes = collections.Counter(r.bytes for r in heard[name, True] if r.up is up and r.bytes > SMALL)
            # The handshake, headers, the opening and the end have sizes of their own; all others are those of blocks.
            others = {size: n for size, n in sizes.items() if size not in BLOCKS}
            assert sum(others.values()) <= 8, (name, up, sizes)
            blocks = sum(sizes.values()) - sum(others.values())
            rounds = round((blocks + 1) / PADDING.round_blocks)
            assert rounds >= 1
            assert abs(blocks - rounds * PADDING.round_blocks) <= 0.3 * PADDING.round_blocks, (name, up, sizes)


def _blocks(*messages: pb.DecodeRequest, rule: pb.PaddingRule | None = None, end: bool = True):
    writer = BlockWriter(PADDING)
    for message in messages:
        writer.put(message.SerializeToString(), whole=message.HasField("open"))
    if end:
        writer.put(b"")
    first = True
    while first or writer.waiting:
        padded = pb.Padded(block=writer.next())
        if first:
            padded.rule.CopyFrom(rule or PADDING.to_wire())
        first = False
        yield pb.DecodeRequest(padded=padded)


@pytest.mark.parametrize(("messages", "code"), [
    (lambda tiny: _blocks(open_message(tiny, [1, 2], max_tokens=0)), ParameterError.code),
    (lambda tiny: _blocks(pb.DecodeRequest(ping=pb.Ping(number=1))), ProtocolError.code),
    (lambda tiny: [*_blocks(end=False), open_message(tiny, [1, 2])], ProtocolError.code),
    (lambda tiny: [*_blocks(end=False), pb.DecodeRequest(padded=pb.Padded(block=b"\xff" * 4))], ProtocolError.code),
])  # fmt: skip
def test_what_is_wrong_is_told_in_blocks(tiny, messages, code):
    """Errors of a padded stream come in blocks, its status is that of every other, and the service lives on."""

    async def run():
        async with serving(tiny) as (address, _), raw_stream(address) as call:
            for message in messages(tiny):
                await call.write(message)
            answers, status = await read_all(call)
            reader = BlockReader(1 << 20)
            assert {len(m.padded.block) for m in answers} == {PADDING.block_bytes}
            told = [pb.DecodeResponse.FromString(data) for m in answers for data in reader.feed(m.padded.block)]
            assert [m.error.code for m in told] == [code]
            assert status.name == "OK"
            assert len(answers) % PADDING.round_blocks == 0

    asyncio.run(run())


def test_a_rule_out_of_bounds_is_refused(tiny):
    """A device cannot make the cloud send more than the bounds of padding allow."""

    async def run():
        rule = pb.PaddingRule(block_bytes=1 << 24, interval_us=1, round_blocks=1)
        async with serving(tiny) as (address, _), raw_stream(address) as call:
            for message in _blocks(rule=rule):
                await call.write(message)
            (answer,), status = await read_all(call)
            assert answer.error.code == ProtocolError.code
            assert "block_bytes" in answer.error.message
            assert status.name == "INVALID_ARGUMENT"

    asyncio.run(run())
