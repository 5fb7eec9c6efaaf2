"""The trust anchors: which roots evidence has to end in, and which report-data domain goes with them.

The hardware anchors are the three public roots of Intel and NVIDIA, pinned here byte for byte. The software
anchors belong to a software TEE; they exist for tests and demos, hold on devnet alone, and carry another domain,
so that simulated evidence fails under hardware anchors even if every key leaked, and the other way round.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography import x509

from ..errors import TrustRefused
from ..types import Network

_INTEL_SGX_ROOT_CA: Final = """
MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3Qg
Q0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT
AlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoM
EUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxF
P2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2Nl
cnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInz
g7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9C
iSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI=
"""

_NVIDIA_DEVICE_IDENTITY_CA: Final = """
MIICCzCCAZCgAwIBAgIQLTZwscoQBBHB/sDoKgZbVDAKBggqhkjOPQQDAzA1MSIwIAYDVQQDDBlOVklESUEgRGV2aWNlIElkZW50
aXR5IENBMQ8wDQYDVQQKDAZOVklESUEwIBcNMjExMTA1MDAwMDAwWhgPOTk5OTEyMzEyMzU5NTlaMDUxIjAgBgNVBAMMGU5WSURJ
QSBEZXZpY2UgSWRlbnRpdHkgQ0ExDzANBgNVBAoMBk5WSURJQTB2MBAGByqGSM49AgEGBSuBBAAiA2IABA5MFKM7+KViZljbQSlg
fky/RRnEQScW9NDZF8SXgAW96r6u/Ve8ZggtcYpPi2BS4VFu6KfEIrhN6FcHG7WP05W+oM+hxj7nyA1r1jkB2Ry70YfThX3Ba1zO
ryOP+MJ9vaNjMGEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwHQYDVR0OBBYEFFeF/4PyY8xlfWi3Olv0jUrL+0lf
MB8GA1UdIwQYMBaAFFeF/4PyY8xlfWi3Olv0jUrL+0lfMAoGCCqGSM49BAMDA2kAMGYCMQCPeFM3TASsKQVaT+8S0sO9u97PVGCp
E9d/I42IT7k3UUOLSR/qvJynVOD1vQKVXf0CMQC+EY55WYoDBvs2wPAH1Gw4LbcwUN8QCff8bFmV4ZxjCRr4WXTLFHBKjbfneGSB
WwA=
"""

_NVIDIA_CORIM_ROOT_CA: Final = """
MIICKTCCAbCgAwIBAgIQRdrjoA5QN73fh1N17LXicDAKBggqhkjOPQQDAzBFMQswCQYDVQQGEwJVUzEPMA0GA1UECgwGTlZJRElB
MSUwIwYDVQQDDBxOVklESUEgQ29SSU0gc2lnbmluZyBSb290IENBMCAXDTIzMDMxNjE1MzczNFoYDzIwNTMwMzA4MTUzNzM0WjBF
MQswCQYDVQQGEwJVUzEPMA0GA1UECgwGTlZJRElBMSUwIwYDVQQDDBxOVklESUEgQ29SSU0gc2lnbmluZyBSb290IENBMHYwEAYH
KoZIzj0CAQYFK4EEACIDYgAEuECyi9vNM+Iw2lfUzyBldHAwaC1HF7TCgp12QcEyUTm3Tagxwr48d55+K2VIlWYIDk7NlAIQdcV/
Ff7euGLI+Qauj93HsSI4WX298PpW54RTgz9tC+Q684caR/BXWEeZo2MwYTAdBgNVHQ4EFgQUpaXrOPK4ZDAk08DBskn594zeZjAw
HwYDVR0jBBgwFoAUpaXrOPK4ZDAk08DBskn594zeZjAwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwCgYIKoZIzj0E
AwMDZwAwZAIwHGDyscDP6ihHqRvZlI3eqZ4YkvjE1duaN84tAHRVgxVMvNrp5Tnom3idHYGW/dskAjATvjIx6VzHm/4e2GiZAyZE
IUBDOKPzp5ei/A0iUZpdvngenDwV8Qa/wGdiTmJ7Bp4=
"""

INTEL_ROOT_SHA256: Final = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Roots in DER, and whether they vouch for hardware. Make them with `hardware()` or `software()`."""

    is_hardware: bool
    intel_root: bytes
    nvidia_device_root: bytes
    nvidia_rim_root: bytes

    @cached_property
    def device_root(self) -> x509.Certificate:
        """The root of GPU device chains."""
        return x509.load_der_x509_certificate(self.nvidia_device_root)

    @cached_property
    def rim_root(self) -> x509.Certificate:
        """The root of RIM signers."""
        return x509.load_der_x509_certificate(self.nvidia_rim_root)

    @cached_property
    def intel_root_certificate(self) -> x509.Certificate:
        """The root of quotes, TCB info and QE identity."""
        return x509.load_der_x509_certificate(self.intel_root)


def hardware() -> Anchors:
    """Intel's and NVIDIA's real roots. The only anchors that any network but devnet accepts."""
    intel = _der(_INTEL_SGX_ROOT_CA)
    assert hashlib.sha256(intel).hexdigest() == INTEL_ROOT_SHA256
    return Anchors(
        is_hardware=True,
        intel_root=intel,
        nvidia_device_root=_der(_NVIDIA_DEVICE_IDENTITY_CA),
        nvidia_rim_root=_der(_NVIDIA_CORIM_ROOT_CA),
    )


def software(network: Network, *, intel_root: bytes, nvidia_device_root: bytes, nvidia_rim_root: bytes) -> Anchors:
    """The roots of a software TEE. Raises `TrustRefused` on any network but devnet, whatever was configured."""
    if network is not Network.DEVNET:
        raise TrustRefused(
            f"simulated evidence is refused on {network.label}",
            reason="level.simulated-outside-devnet",
            advice="A software TEE proves nothing. Use a TDX host, or the devnet.",
        )
    return Anchors(
        is_hardware=False,
        intel_root=intel_root,
        nvidia_device_root=nvidia_device_root,
        nvidia_rim_root=nvidia_rim_root,
    )


def _der(body: str) -> bytes:
    return base64.b64decode("".join(body.split()), validate=True)
