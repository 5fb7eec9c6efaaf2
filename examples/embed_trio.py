"""Ask twice at once from a trio program: `python embed_trio.py BOOTSTRAP`."""

import sys

import trio

from cocoon import AsyncClient, CocoonError, ton, trust


async def ask(cocoon: AsyncClient, question: str) -> None:
    """One question; the whole answer at the end."""
    reply = await cocoon.chat(
        model="cocoon-tiny", messages=[{"role": "user", "content": question}], spend_max=ton("0.02")
    )
    await reply.finish()
    print(f"{question}\n  {reply.text}\n  receipt verified: {reply.receipt.verified}")


async def main(bootstrap: str) -> None:
    """Two questions on one session."""
    async with AsyncClient.open(bootstrap=[bootstrap], trust=trust.Open()) as cocoon, trio.open_nursery() as nursery:
        nursery.start_soon(ask, cocoon, "What is Cocoon?")
        nursery.start_soon(ask, cocoon, "What is attestation?")


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except CocoonError as error:
        sys.exit(error.diagnostics())
