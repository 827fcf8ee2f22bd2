"""Addresses that pods may reach: the internet without the cluster's own networks, unless the administrator opens some.

What runs beside the pods must stay out of reach: metadata services, which give any client credentials of the node, the API
server, kubelets, other tenants' pods, and whatever else a private network holds.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StrictBool

from dpo_operator.api.base import ApiModel, ObjectName

Network = IPv4Network | IPv6Network

# Label that Kubernetes gives to every namespace: its name.
NAMESPACE_NAME = "kubernetes.io/metadata.name"

# Metadata and credential services: AWS, Google, Azure, Oracle and others, ECS and EKS (link-local); Alibaba; Azure's WireServer;
# Oracle's second; AWS, EKS and Google on IPv6. Never opened.
METADATA: tuple[Network, ...] = tuple(
    map(
        ip_network,
        ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::/32", "fe80::/10"),
    )
)  # fmt: skip
# Ranges that are not the internet (RFC 6890), and Azure's WireServer, which has an address of the internet.
_PRIVATE_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
# The same of IPv6. Those of IPv4 inside NAT64 are added: 64:ff9b::/96 is the way to the internet of clusters with IPv6 alone.
# Packets to ::ffff:a.b.c.d are IPv4.
_PRIVATE_V6 = tuple(map(IPv6Network, ("::/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")))
_NAT64 = int(IPv6Network("64:ff9b::/96").network_address)


def _through_nat64(nets: Iterable[Network]) -> list[Network]:
    return [IPv6Network((_NAT64 + int(n.network_address), 96 + n.prefixlen)) for n in nets if n.version == 4]


PRIVATE: tuple[Network, ...] = (*_PRIVATE_V4, *_PRIVATE_V6, *_through_nat64(_PRIVATE_V4))


# Services that give a pod the identity of its ServiceAccount, and no other, as each cloud documents them: the agent of EKS Pod Identity;
# the metadata server of GKE, by its address and where the node answers in its place. IRSA and Azure need none: their token is a file.
WorkloadIdentity = Literal["", "EKS", "GKE"]
_IDENTITY: dict[WorkloadIdentity, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "": (),
    "EKS": (("169.254.170.23/32", (80,)), ("fd00:ec2::23/128", (80,))),
    "GKE": (("169.254.169.254/32", (80,)), ("169.254.169.252/32", (987, 988))),
}


def _cidr(text: str) -> str:
    net = ip_network(text)
    if inside := next((m for m in METADATA if m.version == net.version and _within(net, m)), None):
        raise ValueError(f"{text} is a metadata service's ({inside}), which is never opened")
    return str(net)


def _network(text: str) -> str:
    return str(ip_network(text))


class Networks(ApiModel):
    """The administrator's choices.

    metrics_namespaces: namespaces that may read /metrics and /status; empty: all. open: addresses of private networks that prepare
    may reach, such as an object store's. open_namespaces: namespaces whose pods it may reach. closed: more addresses that it
    may not reach, such as the API server's on the internet. workload_identity: whose service pods with a ServiceAccount of their own may
    reach. unisolated: whether a job may turn its policies off.
    """

    metrics_namespaces: tuple[str, ...] = ()
    open: tuple[Annotated[str, AfterValidator(_cidr)], ...] = ()
    open_namespaces: tuple[ObjectName, ...] = ()
    closed: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    workload_identity: WorkloadIdentity = ""
    unisolated: StrictBool = False

    def identity_service(self) -> list[dict[str, Any]]:
        """Rules of NetworkPolicies: the way to the service that gives an identity in this cloud."""
        return [
            {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": port} for port in ports]}
            for cidr, ports in _IDENTITY[self.workload_identity]
        ]

    def outside(self) -> list[dict[str, Any]]:
        """Peers of NetworkPolicies: the internet, and what the administrator opened."""
        closed = [ip_network(text) for text in self.closed]
        closed += _through_nat64(closed)
        opened = [ip_network(text) for text in self.open]
        peers = [_block(ip_network(everything), (*PRIVATE, *closed)) for everything in ("0.0.0.0/0", "::/0")]
        shut = {net for net in opened for c in closed if c.version == net.version and _within(net, c)}
        peers += [_block(net, (*METADATA, *closed)) for net in opened if net not in shut]
        if self.open_namespaces:
            chosen = {"key": NAMESPACE_NAME, "operator": "In", "values": list(self.open_namespaces)}
            peers.append({"namespaceSelector": {"matchExpressions": [chosen]}})
        return peers


CLOSED = Networks()


def _block(net: Network, closed: Iterable[Network]) -> dict[str, Any]:
    """An ipBlock without the closed networks in it. Kubernetes wants each exception to be smaller than the block."""
    inside = {c for c in closed if c.version == net.version and c != net and _within(c, net)}
    largest = [c for c in inside if not any(_within(c, other) for other in inside - {c})]
    block: dict[str, Any] = {"cidr": str(net)}
    if largest:
        block["except"] = [str(c) for c in sorted(largest, key=lambda c: (int(c.network_address), c.prefixlen))]
    return {"ipBlock": block}


def _within(net: Network, other: Network) -> bool:
    """Whether all of net is in other, which has the same version."""
    return other.prefixlen <= net.prefixlen and net.network_address in other
