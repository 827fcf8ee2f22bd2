"""A real Kubernetes cluster on one Linux machine, for the tests and for development.

`python -m tests.cluster.rig up` boots it, `… down` removes every trace of it. In tests:

    from tests.cluster.rig import cluster, control_plane

    with cluster("test") as c:      # three nodes, two of them with a GPU resource, the project's images loaded
        c.kubectl("get", "nodes")
    with control_plane("api") as p:  # etcd, kube-apiserver, kube-controller-manager; boots in seconds, needs no root
        p.kubectl("apply", "-f", "crds")

Nothing is simulated but the GPUs: the binaries are built from upstream's Go modules, containers run under containerd
and runc, and every node is a network namespace of its own with no route out of the machine.
"""

from tests.cluster.rig.cluster import Cluster
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.fixture import cluster, control_plane

__all__ = ["Cluster", "ControlPlane", "cluster", "control_plane"]
