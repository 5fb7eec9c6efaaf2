"""The client role. `open_client` is the way in; `interface` is what its callers see."""

from __future__ import annotations

from .interface import ClientRole, OfferView, ReceiptView, Reply, ReplySummary
from .role import Client, open_client
from .settings import ClientSettings, PaymentAccount

__all__ = [
    "Client", "ClientRole", "ClientSettings", "OfferView", "PaymentAccount", "ReceiptView", "Reply", "ReplySummary",
    "open_client",
]  # fmt: skip
