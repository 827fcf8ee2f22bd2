from pathlib import Path

import pytest
import yaml

from tests.cluster.rig import configs, manifests
from tests.cluster.rig.addresses import DNS_SERVICE
from tests.cluster.rig.binaries import MODULES, module_of
from tests.cluster.rig.control_plane import Endpoints

pytestmark = pytest.mark.unit

HERE = Path("/here")


def test_a_kubelet_uses_the_clusters_dns_and_evicts_only_for_a_full_disk():
    kubelet = configs.kubelet(authority=HERE, cgroup="/g/n1", containerd_socket=HERE / "c.sock", pod_logs=HERE)
    assert kubelet["clusterDNS"] == [DNS_SERVICE]
    assert kubelet["cgroupRoot"] == "/g/n1"
    assert set(kubelet["evictionHard"].values()) == {"1%"}


def test_prometheus_labels_series_as_the_charts_monitors_do():
    config = configs.prometheus(server="https://s", authority=HERE, certificate=HERE, key=HERE, rules=[])
    [scrape] = config["scrape_configs"]
    targets = {rule["target_label"] for rule in scrape["relabel_configs"] if "target_label" in rule}
    assert targets == {"namespace", "pod", "container", "dpojob"}
    kept = {rule["regex"] for rule in scrape["relabel_configs"] if rule.get("action") == "keep"}
    assert kept == {"dpo-operator", "metrics", "Running"}


def test_names_of_other_zones_do_not_exist():
    text = configs.corefile(address="10.0.0.1", kubeconfig=HERE)
    assert "rcode NXDOMAIN" in text
    assert text.count("bind 10.0.0.1") == 2


def test_the_base_manifests_are_unique_objects():
    objects = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in manifests.base("a")
    ]
    assert len(objects) == len(set(objects))


def test_volumes_are_of_the_default_class():
    volume = manifests.volume("v", HERE, "1Gi")
    annotations = manifests.storage_class()["metadata"]["annotations"]
    assert volume["spec"]["storageClassName"] == manifests.storage_class()["metadata"]["name"]
    assert yaml.safe_load(annotations[manifests.DEFAULT_CLASS_ANNOTATION]) is True


def test_every_binary_comes_from_one_module():
    names = [name for module in MODULES for name in module.binaries]
    assert len(names) == len(set(names))
    assert module_of("kubelet").name == "kubernetes"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_versions_are_those_that_the_module_files_ask_for(module):
    required = (module.source / "go.mod").read_text()
    version = module.version.replace("v3.15.0", "v0.315.0")  # Prometheus 3.15 as a Go module
    assert module.name == "pause" or f" {version}" in required


def test_ports_on_loopback_are_all_different():
    ports = Endpoints.on_loopback()
    chosen = {ports.apiserver, ports.etcd, ports.etcd_peer, ports.controller_manager, ports.scheduler}
    assert len(chosen) == 5
