"""`cocoon serve MODEL`: a provider. It loads a model, offers it at a price, and answers sealed requests."""

from __future__ import annotations

import argparse

from ..config import ENGINES
from ..errors import ConfigError
from .console import Console
from .options import add_bootstrap, add_chain, add_common, add_listen, add_metrics, add_passphrase, setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon serve`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="cocoon-tiny (shipped, a test model), a GGUF file, hf:OWNER/REPO/FILE@REVISION, or a model folder",
    )
    parser.add_argument("--price-in", metavar="TON", help="per million input tokens (default: 0)")
    parser.add_argument("--price-out", metavar="TON", help="per million output tokens (default: 0)")
    parser.add_argument("--engine", choices=ENGINES, help="default: auto, by the model's form")
    parser.add_argument("--upstream", metavar="URL", help="an inference server on this machine with the model loaded")
    parser.add_argument("--upstream-model", metavar="NAME", help="its name there, if the server has several")
    parser.add_argument("--upstream-key-file", metavar="FILE", help="holds the server's key")
    parser.add_argument("--slots", type=int, metavar="N", help="requests that decode at once (default: 4)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="per request, prompt and answer together")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the engine's choice)")
    parser.add_argument(
        "--tee",
        metavar="KIND",
        help="what this machine proves: none (default: clients must accept trust level open), simulated (devnet), "
        "tdx, tdx+gpu",
    )
    parser.add_argument("--region", metavar="TEXT", help="where this is, as a hint for clients")
    parser.add_argument(
        "--payout", metavar="ADDRESS", help="be paid: `wallet` (this home's), or an address (default: nobody is paid)"
    )
    parser.add_argument(
        "--stake", action="store_true", default=None, help="name this home's stake in offers (`cocoon stake deposit`)"
    )
    add_passphrase(parser)
    add_chain(parser)
    add_metrics(parser)
    add_common(parser)
    add_bootstrap(parser)
    add_listen(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C."""
    prepared = setup(
        args,
        provider__model=args.model,
        provider__price_input_ton=args.price_in,
        provider__price_output_ton=args.price_out,
        provider__engine=args.engine,
        provider__upstream_url=args.upstream,
        provider__upstream_model=args.upstream_model,
        provider__upstream_key_path=args.upstream_key_file,
        provider__slots=args.slots,
        provider__context_tokens=args.context,
        provider__threads=args.threads,
        provider__region=args.region,
        provider__tee=args.tee,
        provider__payout=args.payout,
        provider__stake=args.stake,
    )
    if prepared.config.provider.model is None:
        raise ConfigError("no model was named", advice="Try `cocoon serve cocoon-tiny`.")
    from .paying import unlock_for_claims
    from .running import run_program

    wallet_key = unlock_for_claims(prepared)
    from .stacks import run_provider

    return run_program(lambda: run_provider(prepared, console, wallet_key=wallet_key), is_service=True)
