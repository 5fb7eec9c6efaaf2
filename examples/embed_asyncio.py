"""Ask from an asyncio program, for at most a minute: `python embed_asyncio.py BOOTSTRAP`."""

import asyncio
import sys

from cocoon import CocoonError, aio, ton, trust


async def main(bootstrap: str) -> None:
    """One question. Cancelling the task cancels the request at the provider."""
    async with aio.AsyncClient.open(bootstrap=[bootstrap], trust=trust.Open()) as cocoon, asyncio.timeout(60):
        reply = await cocoon.chat(
            model="cocoon-tiny",
            messages=[{"role": "user", "content": "What is Cocoon?"}],
            spend_max=ton("0.02"),
        )
        async for text in reply:
            print(text, end="", flush=True)
        print(f"\nreceipt verified: {reply.receipt.verified}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except CocoonError as error:
        sys.exit(error.diagnostics())
