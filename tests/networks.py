"""A model of NetworkPolicies: who reaches whom, as Kubernetes' documentation defines it.

It stands for a network plugin that enforces policies, which is not there where these tests run. Where plugins differ, in
whether an ipBlock also means pods of that address, the model takes the wider reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Policy = dict[str, Any]
NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Place:
    """A pod, or with no namespace an address that is no pod's. port_names: numbers of named ports."""

    address: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    port_names: dict[str, int] = field(default_factory=dict)


def reaches(policies: Sequence[Policy], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is allowed at both of its ends."""
    out = _allowed(policies, "Egress", source, target, target, port, protocol)
    return out and _allowed(policies, "Ingress", target, source, target, port, protocol)


def _allowed(
    policies: Sequence[Policy], direction: str, pod: Place, peer: Place, listener: Place, port: int, protocol: str
) -> bool:
    """Without a policy that selects the pod everything is allowed; with some, what any of their rules allows."""
    selecting = [p for p in policies if direction in p["spec"]["policyTypes"] and _selects(p, pod)]
    key, side = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not selecting or any(
        _peer_fits(rule.get(side), peer, policy) and _port_fits(rule.get("ports"), listener, port, protocol)
        for policy in selecting
        for rule in policy["spec"].get(key, ())
    )


def _selects(policy: Policy, pod: Place) -> bool:
    return policy["metadata"]["namespace"] == pod.namespace and fits(policy["spec"]["podSelector"], pod.labels)


def _peer_fits(peers: list[Any] | None, place: Place, policy: Policy) -> bool:
    return not peers or any(_one_peer_fits(peer, place, policy) for peer in peers)


def _one_peer_fits(peer: dict[str, Any], place: Place, policy: Policy) -> bool:
    if (block := peer.get("ipBlock")) is not None:
        address = ip_address(place.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(cidr) for cidr in block.get("except", ())
        )
    if not place.namespace:
        return False
    if "namespaceSelector" not in peer:
        in_namespace = place.namespace == policy["metadata"]["namespace"]
    else:
        in_namespace = fits(peer["namespaceSelector"], {NAME: place.namespace})
    return in_namespace and fits(peer.get("podSelector", {}), place.labels)


def _port_fits(ports: list[Any] | None, listener: Place, port: int, protocol: str) -> bool:
    return not ports or any(
        rule.get("protocol", "TCP") == protocol
        and (first := listener.port_names.get(rule["port"]) if isinstance(rule["port"], str) else rule["port"])
        is not None
        and first <= port <= rule.get("endPort", first)
        for rule in ports
    )


def fits(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector fits, as Kubernetes reads it. Raises KeyError for an operator that the model lacks."""
    tests = {
        "In": lambda e: labels.get(e["key"]) in e["values"],
        "NotIn": lambda e: labels.get(e["key"]) not in e["values"],
        "Exists": lambda e: e["key"] in labels,
        "DoesNotExist": lambda e: e["key"] not in labels,
    }
    plain: dict[str, str] = selector.get("matchLabels", {})
    return plain.items() <= labels.items() and all(
        tests[e["operator"]](e) for e in selector.get("matchExpressions", ())
    )
