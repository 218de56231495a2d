"""The port on which Ray Serve lets other deployments ask a copy: on its node's own address alone.

Ray opens it in every copy, at all addresses of the machine, asks for no token there and unpickles what
comes in. On a Ray of this machine alone the node's address is loopback; on a cluster it is the one by which
other nodes know it. It does not know what is served.
"""

import logging
from typing import Any

_log = logging.getLogger(__name__)

_EVERYWHERE = "[::]"


def keep_to_node() -> None:
    """Have the port, which Ray opens once a copy is made, on the node's address."""
    from ray.serve._private import replica as module
    from ray.util import get_node_ip_address

    replica: Any = module
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        _log.warning("this Ray opens ports of its own in another way; let nobody but its nodes reach them")
        return
    host = get_node_ip_address()  # type: ignore[no-untyped-call]
    own = f"[{host}]" if ":" in host else host

    def bind_inward(server: Any, address: str) -> Any:
        return bind(server, address.replace(_EVERYWHERE, own))

    replica.add_port_to_grpc_server = bind_inward
