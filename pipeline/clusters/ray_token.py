"""Ray's token: whether a cluster asks for one, whether this process has it, and where it is to be found."""

import os

import grpc
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled; its stub leaves it out
from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]  # likewise

from ..errors import ClusterError

CURE = (
    "write it to ~/.ray/auth_token, or name its file by RAY_AUTH_TOKEN_PATH; it is in that file on the head node, and "
    "on Kubernetes in the RayCluster's Secret"
)
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what every client of Ray asks a head first
_AUTH_MODE = "RAY_AUTH_MODE"


def is_known() -> bool:
    """Whether this process has a token, whatever RAY_AUTH_MODE says."""
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def http_headers() -> dict[str, str]:
    """Of a request that shows the token."""
    return dict(AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True))


def agree_with(address: str, timeout_s: float) -> None:
    """Asks the head of a cluster whether it wants a token, and has this process send it if so, and only then.

    A client without one is refused after 20 s of trying; one that asks for a token itself is accepted by a head that
    knows none, which then cannot call it back and drops its actors one by one ("all references were removed").

    TimeoutError and ConnectionError where nothing answers within timeout_s; Ray itself would try for minutes.
    ClusterError where the two cannot agree.
    """
    if os.environ.get("RAY_USE_TLS") == "1":  # its certificates are Ray's to check
        return
    head = canonicalize_bootstrap_address("auto") if address == "auto" else address.removeprefix("ray://")
    if head is None or ":" not in head:  # no head is known here, or this is a name of Ray's own: Ray will judge
        return
    wanted, mode = _is_wanted(head, timeout_s), os.environ.get(_AUTH_MODE)
    if mode == "token" and not wanted:
        raise ClusterError(
            f"cluster.address {address!r}: this cluster takes no token, but RAY_AUTH_MODE=token asks for one; start "
            f"its head with RAY_AUTH_MODE=token, too, or unset the variable here"
        )
    if wanted and not is_known():
        raise ClusterError(f"cluster.address {address!r}: the cluster asks for a token, and none is known here; {CURE}")
    if wanted and mode is None:
        os.environ[_AUTH_MODE] = "token"
        RayConfig.initialize("")  # which was read from the environment by the import


def _is_wanted(head: str, timeout_s: float) -> bool:
    """Whether the head at HOST:PORT refuses those who show none."""
    with grpc.insecure_channel(head) as channel:
        try:
            channel.unary_unary(_CLUSTER_ID)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            match error.code():
                case grpc.StatusCode.UNAUTHENTICATED:
                    return True
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError(f"silent for {timeout_s:g} s, cluster.timeout_s") from None
                case grpc.StatusCode.UNAVAILABLE:
                    raise ConnectionError(error.details()) from None
    return False  # it answered, or is a server of ray:// addresses, which do not know the question
