"""Evidence of this machine with throwaway keys, saved to a file: `python -m cocoon.adapters.tee.selftest OUT`.

An operator runs it inside the guest before offering anything, and judges the file as a client would, here or on
another computer: `cocoon verify OUT --policy policy.toml`. Nothing is sent, and the keys are forgotten.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio
from nacl.signing import SigningKey

from ...attest.enclave import Enclave
from ...attest.evidence import SavedEvidence, encode_saved
from ...attest.proving import make_hardware, make_statement
from ...attest.statement import MODE_SIMULATED, SUITE_X25519, signed_statement
from ...errors import CocoonError, ConfigError
from ...types import DIGEST_BYTES, Digest, Network
from .collateral import CollateralStore
from .configfs import ConfigfsDevice, QuoteDevice
from .dstack import SOCKET, DstackDevice
from .hardware import HardwareEnclave
from .nvml import NvmlGpus, load_nvml
from .software import SoftwareEnclave


async def saved_session(
    enclave: Enclave, *, network: Network, models: Sequence[Digest], random: bytes, now_s: int
) -> SavedEvidence:
    """One session with keys and nonce made from 128 random bytes. Raises `Unavailable`."""
    assert len(random) == 4 * DIGEST_BYTES
    nonce, operator, peer = random[:32], SigningKey(random[32:64]), SigningKey(random[64:96])
    statement, gpus = await make_statement(
        enclave,
        network=network,
        nonce=nonce,
        peer=peer.verify_key.encode(),
        sealing_suite=SUITE_X25519,
        sealing_key=random[96:],
        operator=operator.verify_key.encode(),
        payout=bytes(DIGEST_BYTES),
        models=models,
    )
    messages, _ = await make_hardware(enclave, statement, gpus)
    signed = signed_statement(network, statement)
    return SavedEvidence(
        network=int(network),
        nonce=nonce,
        peer=peer.verify_key.encode(),
        operator=operator.verify_key.encode(),
        model=models[0],
        payout=bytes(DIGEST_BYTES),
        statement=statement,
        operator_signature=operator.sign(signed).signature,
        peer_signature=peer.sign(signed).signature,
        hardware=messages[0],
        saved_s=now_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; 0, or 1 with the reason and its fix on standard error."""
    parser = argparse.ArgumentParser(prog="python -m cocoon.adapters.tee.selftest", description=__doc__)
    parser.add_argument("out", type=Path, help="where to write the evidence")
    parser.add_argument("--image", metavar="HEX", help="image digest that was measured (not with --software)")
    parser.add_argument("--config", metavar="HEX", help="configuration digest that was measured")
    parser.add_argument("--model", metavar="HEX", action="append", required=True, help="model digest; repeatable")
    parser.add_argument("--no-gpu", action="store_true", help="a guest without a GPU")
    parser.add_argument("--software", action="store_true", help="the software TEE: proves nothing, devnet only")
    parser.add_argument("--cache", type=Path, default=Path("/var/cache/cocoon/collateral"))
    parser.add_argument("--offline", action="store_true", help="use cached collateral alone")
    args = parser.parse_args(argv)
    gpus: NvmlGpus | None = None
    try:
        models = [_digest(text, "--model") for text in args.model]
        now_s = int(time.time())
        enclave: Enclave
        if args.software:
            enclave = SoftwareEnclave(models=models, clock_s=lambda: now_s, with_gpu=not args.no_gpu)
        else:
            if not args.no_gpu:
                gpus = NvmlGpus(load_nvml())
                gpus.open()
            device: QuoteDevice = DstackDevice() if SOCKET.exists() else ConfigfsDevice()
            enclave = HardwareEnclave(
                device=device,
                collateral=CollateralStore(folder=args.cache, clock_s=lambda: int(time.time()), offline=args.offline),
                image=_digest(args.image, "--image"),
                config=_digest(args.config, "--config"),
                gpus=gpus,
            )
        network = Network.DEVNET if enclave.mode == MODE_SIMULATED else Network.MAINNET

        async def make() -> SavedEvidence:
            return await saved_session(
                enclave, network=network, models=models, random=os.urandom(4 * DIGEST_BYTES), now_s=now_s
            )

        args.out.write_bytes(encode_saved(trio.run(make)))
    except (CocoonError, OSError) as error:
        advice = getattr(error, "advice", "")
        print(f"error: {error}\n{advice}".rstrip(), file=sys.stderr)  # noqa: T201 - a command's own talk
        return 1
    finally:
        if gpus is not None:
            gpus.close()
    print(f"written; now check it: cocoon verify {args.out} --policy POLICY.toml", file=sys.stderr)  # noqa: T201
    return 0


def _digest(text: str | None, what: str) -> Digest:
    try:
        digest = bytes.fromhex(text or "")
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES:
        raise ConfigError(f"{what} is not {DIGEST_BYTES} bytes of hex")
    return digest


if __name__ == "__main__":
    sys.exit(main())
