"""A chat's next turn sends what is new: by bytes, and when the cloud forgot it, or somebody asks for another's."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest
from outrider_edge.session.memory import Clouds, SentLogs
from outrider_shared.packing import pack_tokens
from outrider_shared.prefix import prefix_digest
from outrider_shared.sampling import SamplingParams
from support.drafters import RandomDrafter
from support.service import client, collect, open_message, raw_stream, read_all, serving


def turn(prompt, tokens: int = 8) -> GenerateRequest:
    return GenerateRequest(tuple(prompt), tokens, SamplingParams(0.8, seed=3), ignore_eos=True)


FIRST = [(7 * i) % 90 + 3 for i in range(70)]


def test_second_turn_costs_bytes_for_the_new_turn_alone(tiny):
    """The same new words cost the same after a short and after a long first turn, and far less than the whole."""

    async def run():
        async with serving(tiny) as (address, _), GrpcConnector(address) as connector:
            costs = {}
            for length in (40, 70):
                device = client(tiny, connector, lambda: RandomDrafter(1, 97))
                first, finished = await collect(device, turn(FIRST[:length]))
                assert finished.totals.prompt_reused == 0
                history = [*FIRST[:length], *first]
                second, finished = await collect(device, turn([*history, 11, 12, 13]))
                assert finished.totals.prompt_reused == len(history)
                costs[length] = finished.totals.prompt_bytes
                fresh, whole = await collect(client(tiny, connector), turn([*history, 11, 12, 13]))
                assert second == fresh
                assert finished.totals.prompt_bytes < whole.totals.prompt_bytes
            assert costs[40] == costs[70]

    asyncio.run(run())


def test_penalties_and_lengths_of_a_second_turn_count_from_where_its_answer_begins(tiny):
    """What the cloud knew of the prompt is prompt: the same tokens as with all of it sent."""

    async def run():
        params = SamplingParams(0.8, seed=3, presence_penalty=1.5, frequency_penalty=1.0, repetition_penalty=1.3)
        async with serving(tiny) as (address, _), GrpcConnector(address) as connector:
            device = client(tiny, connector, lambda: RandomDrafter(1, 97))
            first, _ = await collect(device, turn(FIRST))
            asked = dataclasses.replace(turn([*FIRST, *first, 5], 24), params=params, min_tokens=24)
            second, finished = await collect(device, asked)
            whole, _ = await collect(client(tiny, connector), asked)
            assert finished.totals.prompt_reused == len(FIRST) + len(first)
            assert second == whole
            assert second != (await collect(device, turn([*FIRST, *first, 5], 24)))[0]

    asyncio.run(run())


def test_a_cloud_that_forgot_asks_for_all_and_the_text_is_the_same(tiny):
    """Within the same request: one more exchange on the same stream, drafts of the meantime kept."""

    async def run():
        logs = SentLogs()
        async with serving(tiny) as (address, _), GrpcConnector(address) as connector:
            # A key that no cloud ever gave is what a restarted cloud sees.
            logs.remember(address, b"k" * 16, FIRST)
            device = client(tiny, connector, lambda: RandomDrafter(1, 97), clouds=Clouds(logs=logs))
            answer, finished = await collect(device, turn([*FIRST, 5, 6]))
            plain, _ = await collect(client(tiny, connector), turn([*FIRST, 5, 6]))
            assert answer == plain
            assert finished.totals.connects == 1
            assert finished.totals.prompt_reused == 0
            assert logs.best(address, FIRST).key != b"k" * 16

    asyncio.run(run())


def test_a_cloud_that_remembers_nothing_gives_no_keys(tiny):
    """With `remembered_tokens` 0 every turn is sent whole."""

    async def run():
        async with serving(tiny, remembered_tokens=0) as (address, _), GrpcConnector(address) as connector:
            device = client(tiny, connector)
            first, _ = await collect(device, turn(FIRST))
            _, finished = await collect(device, turn([*FIRST, *first, 5]))
            assert finished.totals.prompt_reused == 0

    asyncio.run(run())


@pytest.mark.parametrize("wrong", ["key", "digest", "length"])
def test_whoever_is_wrong_in_anything_learns_only_that_all_must_be_sent(tiny, wrong):
    """A guessed key, other tokens or another length: the same answer as for a forgotten log."""

    async def run():
        async with serving(tiny) as (address, _):
            opening = open_message(tiny, FIRST, max_tokens=1)
            async with raw_stream(address) as owner:
                await owner.write(opening)
                messages, _ = await read_all(owner)
            key = messages[0].opened.log_key
            fields = {"key": key, "digest": prefix_digest(key, FIRST[:50]), "length": 50}
            fields[wrong] = {"key": bytes(16), "digest": prefix_digest(key, FIRST[1:51]), "length": 49}[wrong]
            asked = open_message(
                tiny, [9], max_tokens=1, prefix=fields["key"], prefix_digest=fields["digest"],
                prefix_length=fields["length"],
            )  # fmt: skip
            async with raw_stream(address) as other:
                await other.write(asked)
                assert (await other.read()).WhichOneof("body") == "need_prompt"
                await other.write(open_message(tiny, [*FIRST, 9], max_tokens=1))
                messages, _ = await read_all(other)
            assert messages[-1].commit.length == len(FIRST) + 2
            asked.open.prefix, asked.open.prefix_digest, asked.open.prefix_length = (
                key,
                prefix_digest(key, FIRST[:50]),
                50,
            )
            asked.open.prompt, asked.open.prompt_length = pack_tokens(FIRST[50:], 97), len(FIRST) - 50
            async with raw_stream(address) as right:
                await right.write(asked)
                messages, _ = await read_all(right)
            assert messages[0].opened.length == len(FIRST)

    asyncio.run(run())
