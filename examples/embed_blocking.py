"""Ask the network from an ordinary program: `python embed_blocking.py BOOTSTRAP [QUESTION]`."""

import sys

from cocoon import Client, CocoonError, format_ton, ton, trust


def main(bootstrap: str, question: str = "What is Cocoon?") -> None:
    """One question, streamed."""
    with Client.open(bootstrap=[bootstrap], trust=trust.Open()) as cocoon:
        reply = cocoon.chat(
            model="cocoon-tiny",
            messages=[{"role": "user", "content": question}],
            spend_max=ton("0.02"),
        )
        for text in reply:
            print(text, end="", flush=True)
        print(
            f"\n{reply.usage.total_tokens} tokens from {reply.provider}, {format_ton(reply.cost)} TON, "
            f"receipt verified: {reply.receipt.verified}"
        )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CocoonError as error:
        sys.exit(error.diagnostics())
