"""Writes the byte vectors beside this file: `python tests/vectors/wire/generate.py`.

Origin: this project's own encoder, with fixed inputs; they pin the bytes so that a change of format cannot happen by
accident and so that another implementation can be checked against them. `messages.json` has every message,
`session.json` what the session rules S1 to S4 and M4 derive, `signing.json` what is signed. Keys are SHA-256 of a
name. One vector is not reproducible: HPKE draws its own randomness, so a recorded sealed request is kept while it
opens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nacl.signing

from cocoon.attest.evidence import GpuPart, Hardware, Part, PartKind, SavedEvidence
from cocoon.attest.statement import Statement, encode_statement, signed_statement, statement_digest
from cocoon.errors import SealError
from cocoon.ports.engine import Delta
from cocoon.serve import sealing
from cocoon.serve.chunks import ChunkSeal, associated_data, chain_start, encode_deltas, encode_frame
from cocoon.types import Network, PeerId, Secret
from cocoon.wire import messages as wire
from cocoon.wire.codec import encode
from cocoon.wire.signing import Domain, signed_bytes, stake_statement

HERE = Path(__file__).parent
DEVNET = int(Network.DEVNET)
CLIENT = PeerId("12D3KooWEqnTdgqHnkkwarSrJjeMP2ZJiADWLYADaNvUb6SQNyPF")


def named(name: str, size: int = 32) -> bytes:
    """Fixed bytes for a name."""
    return hashlib.shake_128(name.encode()).digest(size)


def key(name: str) -> nacl.signing.SigningKey:
    """A fixed ed25519 key."""
    return nacl.signing.SigningKey(named(name))


def public(name: str) -> bytes:
    """Its public half."""
    return bytes(key(name).verify_key)


STATEMENT = Statement(
    version=1,
    mode=0,
    network=DEVNET,
    nonce=named("N"),
    peer=public("P"),
    sealing_suite=1,
    sealing_key=sealing.HpkeCrypto().public_key(Secret(named("E"))),
    operator=public("O"),
    payout=bytes(32),
    image=bytes(32),
    config=bytes(32),
    models=[named("model")],
    gpus=[],
)
HEADER = wire.OpenHeader(
    offer=named("offer"), account=b"", input_tokens_max=300, output_tokens_max=1_024, cost_max_nano=1_000_000
)
REQUEST = wire.SealedRequest(
    response_key=named("response key"),
    cache_tag=named("cache tag", 16),
    endpoint="chat.completions",
    body=b'{"max_tokens":64,"messages":[{"role":"user","content":"Hello"}]}',
)
OFFER = wire.Offer(
    version=1,
    network=DEVNET,
    peer=public("P"),
    operator=public("O"),
    stake=bytes(32),
    key_epoch=0,
    seq=7,
    not_before_s=1_795_000_000,
    expiry_s=1_795_003_600,
    addresses=[bytes.fromhex("047f000001060fa1")],
    model=named("model"),
    model_name="cocoon-tiny",
    engine=named("engine"),
    context_tokens_max=2_048,
    output_tokens_max=1_024,
    prices=wire.OfferPrices(input_nano=1_000_000, cached_input_nano=500_000, output_nano=2_000_000, request_nano=0),
    features=7,
    slots=4,
    speed=wire.OfferSpeed(first_token_p50_ms=20, first_token_p95_ms=60, tokens_per_s_p50=500),
    tee=0,
    image=bytes(32),
    consent=key("P").sign(b"consent").signature,
    terms=wire.OfferTerms(payout=bytes(32), unpaid_tokens_max=64, reserve_threshold_nano=0, voucher_step_nano=0),
    region="eu",
    extensions={1_000: b"an extension", 70_000: b""},
)
BEACON = wire.Beacon(
    version=1,
    network=DEVNET,
    peer=public("P"),
    operator=public("O"),
    model_prefix=named("model", 8),
    at_ms=1_795_000_000_123,
    running=2,
    queued=0,
    slots=4,
    kv_free_permille=500,
    wait_ms=0,
)


def session_values() -> dict[str, Any]:
    """sid, keys, chunks and chain of one request."""
    statement = encode_statement(STATEMENT)
    sid = sealing.session_id(
        statement=statement,
        client=CLIENT,
        peer=public("P"),
        client_nonce=named("client nonce"),
        provider_nonce=named("provider nonce"),
    )
    header = encode(HEADER)
    info = sealing.request_info(sid, 3, header)
    plaintext = encode(REQUEST)
    sealed = _sealed_request(info, plaintext)
    chunk_key = sealing.chunk_key(REQUEST.response_key, named("salt"), sid, 3)
    chain = chain_start(sid, 3, sealed)
    seal = ChunkSeal(sealing.HpkeCrypto().cipher(chunk_key), 3, chain, prompt_tokens=12)
    body, tokens = encode_deltas([Delta(text="Hello", token_ids=(1, 70_000))])
    first = seal.seal_next(body, tokens, final=False)
    first_chain = seal.chain
    end = encode(wire.EndBody(finish_reason="stop", prompt_tokens=12, cached_tokens=0, completion_tokens=2))
    last = seal.seal_next(end, 0, final=True)
    return {
        "statement": statement,
        "statement_digest": statement_digest(statement),
        "client": CLIENT.encode(),
        "client_nonce": named("client nonce"),
        "provider_nonce": named("provider nonce"),
        "session_id": sid,
        "header": header,
        "request_info": info,
        "authentication_info": sealing.authentication_info(sid),
        "sealing_private_key": named("E"),
        "request_plaintext": plaintext,
        "request_padded": sealing.pad_request(plaintext),
        "request_sealed": sealed,
        "salt": named("salt"),
        "chunk_key": chunk_key,
        "chain_start": chain,
        "chunk_0_associated_data": associated_data(3, 0, final=False, prompt_tokens=12, completion_tokens=2),
        "chunk_0_body": body,
        "chunk_0_sealed": first.sealed,
        "chain_after_chunk_0": first_chain,
        "chunk_1_associated_data": associated_data(3, 1, final=True, prompt_tokens=12, completion_tokens=2),
        "chunk_1_body": end,
        "chunk_1_sealed": last.sealed,
        "chain_after_chunk_1": seal.chain,
        "frame": encode_frame([first, last])[1],
    }


def _sealed_request(info: bytes, plaintext: bytes) -> bytes:
    """The recorded one while it opens, else a new one."""
    crypto = sealing.HpkeCrypto()
    path = HERE / "session.json"
    if path.exists():
        recorded = next(v["hex"] for v in json.loads(path.read_text()) if v["name"] == "request_sealed")
        try:
            if sealing.unpad_request(crypto.open(Secret(named("E")), bytes.fromhex(recorded), info)) == plaintext:
                return bytes.fromhex(recorded)
        except SealError:
            pass
    return crypto.seal(STATEMENT.sealing_key, sealing.pad_request(plaintext), info)


def message_values() -> list[tuple[wire.Message, str]]:
    """Every message once, with what this one says."""
    values = session_values()
    chunk = wire.Chunk(
        id=3, number=0, final=False, prompt_tokens=12, completion_tokens=2, sealed=values["chunk_0_sealed"]
    )
    receipt = wire.ReceiptBody(
        version=1,
        network=DEVNET,
        session=values["session_id"],
        id=3,
        number=0,
        account=b"",
        payout=bytes(32),
        offer=named("offer"),
        prompt_tokens=12,
        cached_tokens=0,
        completion_tokens=2,
        chain=values["chain_after_chunk_1"],
        due_nano=16,
        consent=named("consent"),
        final=True,
    )
    prefix = values["session_id"][:8]
    offer, beacon = encode(OFFER), encode(BEACON)
    signed_offer = wire.SignedOffer(offer=offer, signature=named("not a signature", 64))
    signed_beacon = wire.SignedBeacon(beacon=beacon, signature=named("not a signature", 64))
    return [
        (wire.Hello(version=1, network=DEVNET, nonce=named("N"), client_nonce=named("client nonce")), "asks for S"),
        (
            wire.Evidence(
                statement=values["statement"],
                operator_signature=key("O").sign(signed_statement(Network.DEVNET, values["statement"])).signature,
                peer_signature=key("P").sign(signed_statement(Network.DEVNET, values["statement"])).signature,
                provider_nonce=named("provider nonce"),
                hardware=b"",
            ),
            "S at trust level open, with both signatures",
        ),
        (wire.Authenticate(session_prefix=prefix, sealed=bytes(100)), "the seal is not genuine"),
        (
            wire.SessionAuthentication(
                account=named("account"),
                voucher_key=public("V"),
                payout=named("payout"),
                signature=key("V")
                .sign(
                    sealing.authentication_bytes(
                        Network.DEVNET, values["session_id"], named("account"), named("payout")
                    )
                )
                .signature,
            ),
            "the plaintext of Authenticate.sealed",
        ),
        (HEADER, "what an Open declares in the clear"),
        (
            wire.Open(
                id=3,
                session_prefix=prefix,
                header=values["header"],
                wait_ms_max=1_000,
                credit_bytes=131_072,
                sealed=values["request_sealed"],
                voucher=b"",
            ),
            "a free request",
        ),
        (REQUEST, "the plaintext of Open.sealed before padding"),
        (wire.Accepted(id=3, salt=named("salt"), queue_position=1), "admitted, one before it"),
        (wire.Refused(id=3, reason="busy", retry_after_ms=700, detail=""), "not admitted"),
        (chunk, "a sealed chunk"),
        (wire.Frame(chunks=[chunk], padding=bytes(5)), "one chunk and five bytes of padding"),
        (
            wire.ChunkBody(
                text="Hé",
                token_ids=[1, 70_000],
                logprobs=[
                    wire.TokenLogprob(
                        token_id=1, token=b"H", logprob_micro=-250_000, top=[(1, b"H", -250_000), (9, b"\xff", -1)]
                    )
                ],
                tool_calls=b'[{"index":0}]',
            ),
            "the plaintext of a chunk",
        ),
        (
            wire.EndBody(finish_reason="stop", prompt_tokens=12, cached_tokens=0, completion_tokens=2),
            "the plaintext of the final chunk",
        ),
        (wire.Credit(id=3, total_bytes=196_608), "64 KiB more than the first 128"),
        (wire.Cancel(id=3), "stop"),
        (receipt, "what P signs at the end"),
        (
            wire.Receipt(
                id=3,
                receipt=encode(receipt),
                signature=key("P").sign(signed_bytes(Domain.RECEIPT, Network.DEVNET, encode(receipt))).signature,
            ),
            "the final receipt",
        ),
        (wire.Voucher(voucher=bytes(92), signature=bytes(64)), "shape only"),
        (wire.Ping(token=5), "are you there"),
        (wire.Pong(token=5), "yes"),
        (wire.Failed(id=3, reason="engine_failed", detail=""), "it cannot go on"),
        (wire.Goodbye(reason="draining"), "no new requests"),
        (wire.Reserve(ceiling_nano=150_000_000), "0.15 TON"),
        (OFFER, "an offer of the test model"),
        (signed_offer, "the signature is not genuine"),
        (BEACON, "half full"),
        (signed_beacon, "the signature is not genuine"),
        (wire.OffersQuery(model=b""), "all offers, please"),
        (wire.OffersReply(offers=[encode(signed_offer)], beacons=[encode(signed_beacon)]), "one of each"),
        (wire.BlobQuery(digest=named("blob"), offset=65_536), "the rest of a part, please"),
        (wire.BlobPiece(total=65_540, data=b"rest"), "the last four bytes"),
        (STATEMENT, "S at trust level open"),
        *evidence_values(values["statement"]),
    ]


def evidence_values(statement: bytes) -> list[tuple[wire.Message, str]]:
    """Hardware evidence in shape only: its content has vectors of its own in `tests/vectors/attestation`."""
    part = Part(kind=int(PartKind.CRL), digest=hashlib.sha256(b"list").digest(), data=b"list")
    named_part = Part(kind=int(PartKind.COLLATERAL), digest=named("collateral"), data=b"")
    gpu = GpuPart(report=b"report", chain=b"chain")
    hardware = Hardware(
        version=1,
        quote=b"quote",
        nonce_index=2,
        nonce_path=[named("sibling"), named("uncle")],
        gpus=[gpu],
        ocsp=[b"answer"],
        parts=[named_part, part],
    )
    saved = SavedEvidence(
        network=DEVNET,
        nonce=named("N"),
        peer=public("P"),
        operator=public("O"),
        model=named("model"),
        payout=bytes(32),
        statement=statement,
        operator_signature=key("O").sign(signed_statement(Network.DEVNET, statement)).signature,
        peer_signature=key("P").sign(signed_statement(Network.DEVNET, statement)).signature,
        hardware=b"",
        saved_s=1_795_000_000,
    )
    return [
        (part, "a static part, inline"),
        (gpu, "one GPU"),
        (hardware, "one of up to four clients that share a quote; collateral by digest"),
        (saved, "a session at trust level open, saved"),
    ]


def signing_values() -> dict[str, bytes]:
    """The bytes that are signed, and ed25519 signatures over them by named keys."""
    payload = b"payload"
    values = {f"{domain.value} on devnet": signed_bytes(domain, Network.DEVNET, payload) for domain in Domain}
    values["receipt on mainnet"] = signed_bytes(Domain.RECEIPT, Network.MAINNET, payload)
    values["stake statement on devnet"] = stake_statement(
        Network.DEVNET, named("stake"), 1, named("slot"), named("digest")
    )
    values["P's signature over receipt on devnet"] = key("P").sign(values["receipt on devnet"]).signature
    return values


def vectors() -> dict[str, list[dict[str, str]]]:
    """What the three files hold."""
    return {
        "messages.json": [
            {"message": type(message).__name__, "meaning": meaning, "hex": encode(message).hex()}
            for message, meaning in message_values()
        ],
        "session.json": [{"name": name, "hex": value.hex()} for name, value in session_values().items()],
        "signing.json": [{"name": name, "hex": value.hex()} for name, value in signing_values().items()],
    }


if __name__ == "__main__":
    for name, content in vectors().items():
        (HERE / name).write_text(json.dumps(content, indent=1) + "\n")
