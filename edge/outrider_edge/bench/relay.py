"""Co-located speculation as a process: the drafter runs beside the cloud, one small message per commit goes down.

It speaks the wire of the cloud itself, so that a device that decodes plainly talks to it as to any cloud, and all
figures are taken alike. What it drafted is appended to a file, an object a line: the wire has no room for it.

    python -m outrider_edge.bench.relay --cloud HOST:PORT --method NAME --ready-file FILE --log FILE
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc

from outrider_edge.bench.methods import method
from outrider_edge.device import Device
from outrider_edge.link.grpc_link import ClientTls
from outrider_edge.session.events import Finished, GenerateRequest, SessionEvent, Tokens
from outrider_shared import wire
from outrider_shared.coding import decode_tokens
from outrider_shared.packing import pack_tokens
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outrider_edge.bench.methods import Method

_FINISH = {
    "eos": pb.FINISH_REASON_EOS,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "context": pb.FINISH_REASON_CONTEXT,
}
_NODES = 128


class Relay:
    """Answers plain sessions with drafts of its own.

    Args:
        device: Connected to the cloud beside it.
        how: Its method.
        log: Where totals go.
    """

    def __init__(self, device: Device, how: Method, log: Path) -> None:
        self._device, self._how, self._log = device, how, log

    async def decode(self, requests: AsyncIterator[pb.DecodeRequest], context: Any) -> None:
        """One session."""
        opening = (await anext(aiter(requests))).open
        request, vocabulary = self._request(opening), opening.vocabulary_size
        length = len(request.prompt)
        await context.write(_opened(length))
        events: asyncio.Queue[SessionEvent | None] = asyncio.Queue()
        answer = asyncio.ensure_future(self._device.answer(request, events.put_nowait))
        answer.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Tokens):
                    length += len(event.tokens)
                    tokens = pack_tokens([token.id for token in event.tokens], vocabulary)
                    commit = pb.Commit(tokens=tokens, count=len(event.tokens), length=length)
                    await context.write(pb.DecodeResponse(commit=commit))
                elif isinstance(event, Finished):
                    self._record(event)  # first: whoever has the last commit reads the log
                    await context.write(pb.DecodeResponse(commit=_last(event, length)))
            await answer
        finally:
            answer.cancel()

    def _request(self, opening: pb.Open) -> GenerateRequest:
        return GenerateRequest(
            prompt=tuple(
                decode_tokens(
                    opening.prompt,
                    opening.prompt_length,
                    opening.vocabulary_size,
                    opening.token_coding,
                    opening.tokenizer_sha256.hex(),
                )
            ),
            max_tokens=opening.max_tokens,
            params=wire.sampling_from_wire(opening.sampling),
            stop=tuple(opening.stop_token_ids),
            ignore_eos=opening.ignore_eos,
            pace=self._how.pace,
            cloud_drafts=self._how.cloud_drafts,
        )

    def _record(self, finished: Finished) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(asdict(finished.totals)) + "\n")


def _opened(length: int) -> pb.DecodeResponse:
    # As many bytes as a cloud's own.
    opened = pb.Opened(lease=bytes(16), length=length, max_nodes=_NODES, max_nodes_per_message=_NODES)
    return pb.DecodeResponse(opened=opened)


def _last(finished: Finished, length: int) -> pb.Commit:
    totals = finished.totals
    usage = pb.Usage(
        steps=totals.cloud_steps,
        rows=totals.cloud_rows,
        accepted=totals.accepted,
        accepted_lookup=totals.cloud_lookups,
        lookup_rows=totals.lookup_rows,
        busy_us=round(totals.cloud_busy_s * 1e6),
    )
    return pb.Commit(length=length, finish=_FINISH.get(finished.reason, pb.FINISH_REASON_LENGTH), usage=usage)


@click.command()
@click.option("--cloud", required=True, help="HOST:PORT of the verifier beside it.")
@click.option("--draft", default="bundled", help="Pack folder, or 'bundled'.")
@click.option("--method", "name", required=True, help="How it drafts.")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="PEM of who signs the cloud's certificate.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM certificate of the relay.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM key of the relay.")
@click.option("--ready-file", type=click.Path(path_type=Path), required=True, help="Write the address here.")
@click.option("--log", type=click.Path(path_type=Path), required=True, help="Append the totals of each answer.")
def relay(**flags: Any) -> None:
    """Serve until SIGTERM."""
    asyncio.run(_serve(flags))


async def _serve(flags: dict[str, Any]) -> None:
    how, stopping = method(flags["name"]), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    tls = None if flags["tls_ca"] is None else ClientTls(flags["tls_ca"])
    async with contextlib.AsyncExitStack() as stack:
        device = await stack.enter_async_context(
            Device.open(flags["cloud"], flags["draft"], tls=tls, policy=how.policy)
        )
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            Relay(device, how, flags["log"]).decode,
            request_deserializer=pb.DecodeRequest.FromString,
            response_serializer=pb.DecodeResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"Decode": handler}),))
        port = _bind(server, flags)
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        partial = flags["ready_file"].with_suffix(".partial")
        partial.write_text(f"127.0.0.1:{port}")
        partial.replace(flags["ready_file"])
        await stopping.wait()


def _bind(server: Any, flags: dict[str, Any]) -> int:
    if flags["tls_cert"] is None:
        return int(server.add_insecure_port("127.0.0.1:0"))
    pair = (flags["tls_key"].read_bytes(), flags["tls_cert"].read_bytes())
    return int(server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])))


if __name__ == "__main__":
    relay()
