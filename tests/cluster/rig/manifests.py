"""What a cluster holds from its start: DNS's Service, rights of the rig's daemons, the storage class. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.rig.addresses import DNS_SERVICE

STORAGE_CLASS = "shared"
DEFAULT_CLASS_ANNOTATION = "storageclass.kubernetes.io/is-default-class"
DNS_USER = "rig:coredns"
PROMETHEUS_USER = "rig:prometheus"

Manifest = dict[str, Any]


def base(dns_address: str) -> list[Manifest]:
    """Everything but the volumes."""
    return [
        *dns_service(dns_address),
        *reader("rig-coredns", DNS_USER, "", ["endpoints", "services", "pods", "namespaces"]),
        *reader("rig-coredns-slices", DNS_USER, "discovery.k8s.io", ["endpointslices"]),
        *reader("rig-prometheus", PROMETHEUS_USER, "", ["pods"]),
        storage_class(),
    ]


def dns_service(address: str) -> list[Manifest]:
    """kube-dns without a selector: CoreDNS is a process beside the API server, out of reach of lost nodes."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "ports": ports_of_endpoints(ports),
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }
    return [service, endpoints]


def ports_of_endpoints(ports: list[Manifest]) -> list[Manifest]:
    return [{"name": port["name"], "port": port["port"], "protocol": port["protocol"]} for port in ports]


def reader(name: str, user: str, group: str, resources: list[str]) -> list[Manifest]:
    """Lets a user see these resources everywhere."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    return [role, binding]


def storage_class() -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {DEFAULT_CLASS_ANNOTATION: "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Retain",
    }


def volume(name: str, path: Path, size: str) -> Manifest:
    """A folder of this machine. All nodes share its file system, so it really is ReadWriteMany."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(path), "type": "Directory"},
        },
    }
