"""Roles that serve: a provider with a model, and a plain node that carries the market for others."""

from __future__ import annotations

from .earning import ProviderPayments
from .plain import PlainNode, open_plain_node
from .provider import ProviderRole, ProviderSettings, open_provider

__all__ = ["PlainNode", "ProviderPayments", "ProviderRole", "ProviderSettings", "open_plain_node", "open_provider"]
