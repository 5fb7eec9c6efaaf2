"""What a running part of Cocoon says of itself: to `cocoon status`, to Prometheus, to its own web page."""

from .facts import Status

__all__ = ["Status"]
