"""The libp2p driver: the one package that imports libp2p.

Importing it takes a second or two, so `p2p.open_node` does it late. libp2p is pinned to one version: what is
overridden here are partly private names, and each override has a test named after the trap it closes.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside libp2p and its dependencies are not our user's
    import libp2p
    import libp2p.network.connection.swarm_connection as _swarm_connection
    import libp2p.tools.utils as _tools_utils

    from p2p.driver.node import open_libp2p_node

# libp2p tells much, and some of it through the root logger, whose first use installs a handler for the whole
# program. What matters to us comes as an error or a counter.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)
for _name in list(logging.root.manager.loggerDict):
    if _name.startswith("libp2p."):  # some set a level of their own
        logging.getLogger(_name).setLevel(logging.NOTSET)
for _module in (_swarm_connection, _tools_utils):
    _module.logging = logging.getLogger(_module.__name__)

__all__ = ["libp2p", "open_libp2p_node"]
