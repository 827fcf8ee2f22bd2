"""Configuration of the cluster's daemons, as pure functions.

Structured ones are written as JSON, which every YAML reader takes: YAML 1.1 would read a bare `n` or `on` as a boolean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.rig.addresses import DNS_SERVICE

PAUSE_IMAGE = "localhost/pause:3"
CNI_PLUGINS = Path("/usr/lib/cni")
PART_OF_LABEL = "dpo-operator"


def kubelet(*, authority: Path, cgroup: str, containerd_socket: Path, pod_logs: Path) -> dict[str, Any]:
    """A KubeletConfiguration. Several kubelets share this machine, hence the paths and no eviction by its disk."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{containerd_socket}",
        # A lost node is noticed within the controller manager's grace period of 16 s.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 12,
        "podLogsDir": str(pod_logs),
        # The machine's resolvers are out of reach from a pod.
        "resolvConf": "",
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 110,
    }


def containerd(*, root: Path, state: Path, socket: Path, cni: Path) -> str:
    """containerd's TOML. Each node has its own: a kubelet ends sandboxes that it did not create."""
    return f"""\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
                    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
                    "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  # Without CAP_SYS_RESOURCE a lower score than the parent's is refused, and no sandbox would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
"""


def cni(*, pods: str, data: Path) -> dict[str, Any]:
    """The node's pod network: a bridge with the node's own subnet; ports are mapped for hostPort."""
    return {
        "cniVersion": "0.4.0",
        "name": "rig",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(data),
                    "ranges": [[{"subnet": pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def corefile(*, address: str, kubeconfig: Path) -> str:
    """CoreDNS: names of the cluster, and a quick "no such name" for all others, since there is no way out."""
    return f"""\
cluster.local in-addr.arpa {{
    bind {address}
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
}}
. {{
    bind {address}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def prometheus(*, server: str, authority: Path, certificate: Path, key: Path, rules: Sequence[str]) -> dict[str, Any]:
    """Scrapes every `metrics` port of the project's pods, with the labels that the chart's PodMonitor gives."""

    def copied(source: str, target: str) -> dict[str, Any]:
        return {"source_labels": [source], "target_label": target}

    def kept(source: str, pattern: str) -> dict[str, Any]:
        return {"source_labels": [source], "action": "keep", "regex": pattern}

    meta = "__meta_kubernetes_pod"
    return {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
        "rule_files": list(rules),
        "scrape_configs": [
            {
                # As the chart's PodMonitor is called, by which the dashboards tell the operator.
                "job_name": "dpo-system/dpo-operator",
                # The operator's series carry their DPOJob's namespace; without this it would be exported_namespace.
                "honor_labels": True,
                "kubernetes_sd_configs": [
                    {
                        "role": "pod",
                        "api_server": server,
                        "tls_config": {"ca_file": str(authority), "cert_file": str(certificate), "key_file": str(key)},
                    }
                ],
                "relabel_configs": [
                    kept(f"{meta}_label_app_kubernetes_io_part_of", PART_OF_LABEL),
                    kept(f"{meta}_container_port_name", "metrics"),
                    kept(f"{meta}_phase", "Running"),
                    copied("__meta_kubernetes_namespace", "namespace"),
                    copied(f"{meta}_name", "pod"),
                    copied(f"{meta}_container_name", "container"),
                    copied(f"{meta}_label_dpo_operator_dev_job", "dpojob"),
                ],
            }
        ],
    }


def audit_policy() -> dict[str, Any]:
    """Who did what to which object, without bodies."""
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
