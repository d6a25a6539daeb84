"""Refused drafts are kept for devices that agreed, and for no others: over a real socket, to a real folder."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.replay.reading import Contents, read_store, segments
from outrider_cloud.replay.store import ReplayConfig
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_shared.packing import pack_tokens, unpack_tokens
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb
from support.drafters import AdversarialDrafter, OracleDrafter, RandomDrafter
from support.service import client, collect, open_message, raw_stream, read_all, serving

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.replay.records import Header, Record

PROMPT = tuple((7 * i) % 90 + 3 for i in range(20))
AGREED = GenerateRequest(
    PROMPT, 24, SamplingParams(0.8, seed=3), ignore_eos=True, pace=Pace.HOLD, report_refused=True
)  # fmt: skip
SILENT = dataclasses.replace(AGREED, report_refused=False)


def kept(folder: Path) -> list[tuple[Header, Record]]:
    return list(read_store(folder, Contents()))


def test_an_answer_leaves_what_was_drafted_and_what_the_target_chose(tiny, tmp_path):
    """A drafter that is always wrong: each verified place is refused, and the record's tokens are the answer's."""

    async def run():
        async with serving(tiny, replay=ReplayConfig(tmp_path)) as (address, _), GrpcConnector(address) as connector:
            plain, _ = await collect(client(tiny, connector), SILENT)
            wrong = AdversarialDrafter(97, [*PROMPT, *plain])
            answer, _ = await collect(client(tiny, connector, lambda: wrong), AGREED)
            assert answer == plain
        return [*PROMPT, *plain]

    log = asyncio.run(run())
    ((header, record),) = kept(tmp_path)
    assert (header.target, header.tokenizer, header.vocabulary) == (tiny.fingerprint, tiny.tokenizer_sha256, 97)
    assert list(record.tokens) == log[: len(record.tokens)]
    assert record.answer_start == len(PROMPT)
    assert record.temperature == pytest.approx(0.8)
    assert len(record.refused) >= 10
    for each in record.refused:
        assert each.position >= len(PROMPT)
        assert each.drafted[0] == (log[each.position] + 1) % 97
    assert len({each.position for each in record.refused}) == len(record.refused)
    assert record.refused[-1].position == len(record.tokens) - 1


def test_a_session_that_did_not_agree_leaves_nothing(tiny, tmp_path):
    """Nor does one that agreed and was never refused; the folder holds its lock alone."""

    async def run():
        async with serving(tiny, replay=ReplayConfig(tmp_path)) as (address, _), GrpcConnector(address) as connector:
            plain, _ = await collect(client(tiny, connector, lambda: RandomDrafter(1, 97)), SILENT)
            right = OracleDrafter(1, 97, [*PROMPT, *plain], lies=0.0)
            await collect(client(tiny, connector, lambda: right), AGREED)

    asyncio.run(run())
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_cloud_that_keeps_nothing_answers_all_the_same(tiny, tmp_path):
    """Agreement is leave, not a wish: without --replay-dir nothing is written anywhere."""

    async def run():
        async with serving(tiny) as (address, _), GrpcConnector(address) as connector:
            agreed, _ = await collect(client(tiny, connector, lambda: RandomDrafter(1, 97)), AGREED)
            silent, _ = await collect(client(tiny, connector, lambda: RandomDrafter(1, 97)), SILENT)
            assert agreed == silent

    asyncio.run(run())
    assert not list(tmp_path.iterdir())


def test_a_broken_stream_and_its_resume_leave_each_place_once(tiny, tmp_path):
    """The second stream goes on where the first stopped; both records together are the answer's refusals."""

    config = EngineConfig(kv_tokens=4096, hold_s=60.0)
    opening = open_message(tiny, list(PROMPT), pace=pb.PACE_HOLD, max_tokens=20, report_refused=True)
    again = pb.DecodeRequest.FromString(opening.SerializeToString())
    again.open.session_id += "-2"

    async def refuse(call: Any, length: int) -> int:
        """Draft what is refused behind the log's end until a commit tells of it; returns the log's length."""
        until = length + 2
        while length < until:
            await call.write(chain([96], length))
            while (message := await call.read()).WhichOneof("body") != "commit":
                pass
            again.open.committed += unpacked(message.commit)
            length = message.commit.length
        return length

    async def run():
        async with serving(tiny, config, replay=ReplayConfig(tmp_path)) as (address, _):
            async with raw_stream(address) as call:
                await call.write(opening)
                length = await refuse(call, len(PROMPT))
                call.cancel()
            answer = list(again.open.committed)
            again.open.committed, again.open.committed_length = pack_tokens(answer, 97), len(answer)
            async with raw_stream(address) as call:
                await call.write(again)
                await refuse(call, length)
                await call.write(pb.DecodeRequest(cancel=pb.Cancel()))
                await read_all(call)

    asyncio.run(run())
    places = [(each.position, each.drafted) for _, record in kept(tmp_path) for each in record.refused]
    assert {(len(PROMPT) + i, (96,)) for i in (0, 2)} <= set(places)
    assert len(kept(tmp_path)) == 2
    assert len(places) == len(set(places))


def unpacked(commit: pb.Commit) -> bytes:
    """A commit's own tokens, one byte each."""
    return bytes(unpack_tokens(commit.tokens, commit.count, 97))


def chain(tokens: list[int], anchor: int) -> pb.DecodeRequest:
    return pb.DecodeRequest(draft=pb.Draft(tokens=pack_tokens(tokens, 97), count=len(tokens), anchor=anchor))


def test_late_and_hostile_drafts_never_point_outside_the_answer(tiny, tmp_path):
    """Nodes for the prompt, and for places that the log has overtaken: kept are wrong ones of the answer alone."""

    async def run():
        async with serving(tiny, replay=ReplayConfig(tmp_path)) as (address, _), raw_stream(address) as call:
            await call.write(open_message(tiny, list(PROMPT), max_tokens=6, report_refused=True))
            length = 0
            while length < len(PROMPT) + 3:
                message = await call.read()
                length = message.commit.length if message.HasField("commit") else length
            for anchor in (1, len(PROMPT) - 1, len(PROMPT)):
                await call.write(chain([96, 96], anchor))
            await call.done_writing()
            await read_all(call)

    asyncio.run(run())
    for _, record in kept(tmp_path):
        assert record.answer_start == len(PROMPT)
        assert all(each.position >= len(PROMPT) for each in record.refused)


def test_many_sessions_stay_below_the_cap(tiny, tmp_path):
    """Forty answers into 64 KiB: the oldest went, the newest can be read."""

    async def run():
        config = ReplayConfig(tmp_path, cap_bytes=1 << 16, context_tokens=8)
        async with serving(tiny, replay=config) as (address, _), GrpcConnector(address) as connector:
            device = client(tiny, connector, lambda: RandomDrafter(1, 97))
            for number in range(40):
                prompt = (number + 1, *PROMPT)
                await collect(device, dataclasses.replace(AGREED, prompt=prompt, max_tokens=8))

    asyncio.run(run())
    records = [record for _, record in kept(tmp_path)]
    assert len(records) > 20
    assert all(record.answer_start <= 8 for record in records)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 1 << 16
