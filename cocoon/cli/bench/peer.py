"""One process of the bench: `raw` (the engine behind plain HTTP), `provider`, or `gateway`.

Run by `cocoon bench` as `python -m cocoon.cli.bench.peer ROLE …`; prints one JSON line when it can serve and runs until
SIGTERM or until its standard input closes. SIGUSR1 starts the figures anew after the warm-up. With `--profile FILE` it
saves where its CPU time went.

The provider and the gateway are the shipped roles, adapters and servers on real sockets; only the paced engine, which
`cocoon serve` cannot select, is put in here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import trio

from ...adapters.clock import SystemClock, entropy
from ...adapters.engines.paced import PacedEngine
from ...adapters.network import open_network
from ...adapters.signer import KeyFileSigner
from ...adapters.store_memory import MemoryStore
from ...attest.policy import TrustPolicy
from ...client.role import open_client
from ...client.settings import ClientSettings
from ...gateway.asgi import AsgiApp, Message, Receive, Send, ServerLimits, response_body, response_start
from ...gateway.h11_server import serve_h11
from ...gateway.server import bind, open_gateway
from ...gateway.settings import GatewaySettings
from ...market.catalogue import Catalogue, ModelRef
from ...node.provider import ProviderSettings, open_provider
from ...ports import Delta, Engine, GenerationRequest
from ...types import Network, Prices, Secret, TrustLevel, ton
from .sampler import Sampler

MODEL: Final = ModelRef(name="cocoon-bench", digest=sha256(b"cocoon bench model").digest())
NETWORK: Final = Network.DEVNET
ENGINE_ALONE_PATH: Final = "/engine-alone"  # runs the engine and says only the usage: what the engine itself costs
SLOTS: Final = 64
CONTEXT_TOKENS: Final = 1_024
TINY: Final = Path(__file__).parents[2] / "data" / "models" / "cocoon-tiny" / "cocoon-tiny-q8_0.gguf"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("raw", "provider", "gateway"))
    parser.add_argument("--engine", choices=("paced", "tiny"), default="paced")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--key", default="bench-key-0123456789")
    parser.add_argument("--server", choices=("h11", "hypercorn"), default="h11")
    parser.add_argument("--profile", type=Path)
    args = parser.parse_args()
    sampler = Sampler() if args.profile is not None else None
    if sampler is not None:
        sampler.start()
    trio.run(_run, args, sampler)
    if sampler is not None:
        sampler.stop()
        sampler.write(args.profile)


async def _run(args: argparse.Namespace, sampler: Sampler | None) -> None:
    role = {"raw": _raw, "provider": _provider, "gateway": _gateway}[args.role]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_told, nursery.cancel_scope, sampler)
        async with role(args) as ready:
            print(json.dumps(ready), flush=True)
            await trio.sleep_forever()


async def _until_told(scope: trio.CancelScope, sampler: Sampler | None) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_orphaned, scope)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            async for number in signals:
                if number != signal.SIGUSR1:
                    scope.cancel()
                elif sampler is not None:
                    sampler.reset()


async def _until_orphaned(scope: trio.CancelScope) -> None:
    """However the bench ends, its pipe closes."""
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    scope.cancel()


@asynccontextmanager
async def _engine(kind: str) -> AsyncIterator[Engine]:
    if kind == "paced":
        yield PacedEngine(slots=256, answer_tokens=1_000_000, context_tokens=CONTEXT_TOKENS)
        return
    from ...adapters.engines.llamacpp import open_llamacpp_engine

    async with open_llamacpp_engine(TINY, slots=SLOTS, context_tokens=CONTEXT_TOKENS, threads=1) as engine:
        yield engine


@asynccontextmanager
async def _provider(args: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    clock = SystemClock()
    seed = Secret(entropy(32))
    store = MemoryStore(clock=clock, entropy=entropy)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_engine(args.engine))
        network = await stack.enter_async_context(
            open_network(seed=seed, listen=["/ip4/127.0.0.1/tcp/0"], serves_dht=True, allow_private_addresses=True)
        )
        signer = KeyFileSigner(Secret(entropy(32)), network=NETWORK, store=store)
        settings = ProviderSettings(
            network_id=NETWORK, prices=Prices(input_nano=0, cached_input_nano=0, output_nano=0), queue_max=512
        )
        provider = await stack.enter_async_context(
            open_provider(network, engine, MODEL, signer, store, settings, clock=clock, entropy=entropy)
        )
        await provider.wait_offered()
        yield {"addresses": list(network.addresses())}


@asynccontextmanager
async def _gateway(args: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            open_network(
                seed=Secret(entropy(32)), bootstrap=args.bootstrap, serves_dht=False, allow_private_addresses=True
            )
        )
        await network.wait_connected(timeout_s=30)
        client = await stack.enter_async_context(
            open_client(
                network,
                ClientSettings(policy=TrustPolicy(level=TrustLevel.OPEN, network=NETWORK)),
                catalogue=Catalogue([MODEL]),
                clock=clock,
                entropy=entropy,
            )
        )
        settings = GatewaySettings(
            api_keys=(Secret(args.key.encode()),),
            spend_max_request_nano=ton("1"),
            spend_max_day_nano=ton("1000"),
            port=args.port,
            server=args.server,
        )
        handle = await stack.enter_async_context(open_gateway(client, settings, clock))
        await client.offers(MODEL.name, wait_s=15)
        yield {"port": handle.port}


@asynccontextmanager
async def _raw(args: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    if args.engine == "tiny":
        yield await trio.to_thread.run_sync(_llamacpp_server, args.port)
        return
    async with _engine("paced") as engine, trio.open_nursery() as nursery:
        listener = await bind("127.0.0.1", args.port)
        stop = trio.Event()
        limits = ServerLimits(connections_max=1_024, grace_s=0.1)

        async def serve() -> None:
            await serve_h11(_paced_app(engine), listener, limits=limits, stop=stop)

        nursery.start_soon(serve)
        try:
            yield {"port": listener.getsockname()[1]}
        finally:
            stop.set()


_KEPT: list[Any] = []  # the raw server lives as long as its process


def _llamacpp_server(port: int) -> dict[str, Any]:
    """llama.cpp's own HTTP server as it comes: the baseline. For a moment on loopback, with a toy model."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(TINY)
    parameters.model_alias = {"cocoon-bench"}
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 2 * SLOTS
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.ui = False
    parameters.fit_params = False
    parameters.warmup = False
    parameters.verbosity = -1
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    server = xllamacpp.Server(parameters)
    _KEPT.append(server)
    return {"port": int(server.listening_address.rsplit(":", 1)[1])}


def _paced_app(engine: Engine) -> AsgiApp:
    """The paced engine as an OpenAI-style stream, with as little around it as there can be."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message: Message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body)
        request = GenerationRequest(
            endpoint="chat.completions",
            body={"messages": asked["messages"], "max_tokens": asked["max_tokens"], "temperature": 0},
        )
        await send(response_start(200, [(b"content-type", b"text/event-stream")]))
        is_silent = scope["path"] == ENGINE_ALONE_PATH
        async with engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Delta):
                    if is_silent:
                        continue
                    data: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": event.text}}]}
                else:
                    data = {"choices": [], "usage": {"completion_tokens": event.usage.completion_tokens}}
                await send(response_body(b"data: " + json.dumps(data).encode() + b"\n\n", more=True))
        await send(response_body(b"data: [DONE]\n\n", more=False))

    return app


if __name__ == "__main__":
    main()
