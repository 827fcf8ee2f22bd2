"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

The same code serves both tiers: alone on loopback, as an ordinary user, for tests that need no more than an API; and
inside the network namespace of a whole cluster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig import configs, packages
from tests.cluster.rig.addresses import KUBERNETES_SERVICE, SERVICE_SUBNET
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.layout import Layout
from tests.cluster.rig.pki import Authority
from tests.cluster.rig.processes import Process, recorded, spawn
from tests.cluster.rig.shell import FatalError, RigError, run, tail, wait_for
from tests.ports import free_port

READY_SECONDS = 90.0
ISSUER = "https://kubernetes.default.svc"
# A node that sends nothing for this long is NotReady; short, so that tests of lost nodes do not take minutes.
NODE_GRACE = "16s"
# A third of an API server's processor time went into Go's garbage collection, of heaps of some hundred MiB.
COLLECT_LESS = {"GOGC": "400"}


@dataclass(frozen=True)
class Endpoints:
    """Where the control plane listens."""

    address: str
    apiserver: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.apiserver}"

    @classmethod
    def in_namespace(cls, address: str) -> Endpoints:
        """The usual ports: the namespace is the cluster's own."""
        return cls(address, 6443, 2379, 2380, 10257, 10259)

    @classmethod
    def on_loopback(cls) -> Endpoints:
        """Ports that are free now."""
        return cls("127.0.0.1", *(free_port() for _ in range(5)))


@dataclass(frozen=True)
class ControlPlane:
    """A control plane with its state in a folder."""

    layout: Layout
    endpoints: Endpoints
    # Words in front of every command: enters the cluster's network namespace.
    enter: tuple[str, ...] = ()
    group: Path | None = None
    audit: bool = False
    # Requests a second that each controller and the scheduler may make; None: their own defaults, 20 and 50.
    qps: int | None = None

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    @property
    def authority(self) -> Authority:
        return Authority(self.layout.pki)

    @property
    def audit_log(self) -> Path:
        return self.layout.logs / "audit.jsonl"

    def kubectl(self, *words: str | Path, stdin: str | None = None, timeout: float | None = 120.0) -> str:
        """Run kubectl as the cluster's administrator and return its output."""
        return run([binary("kubectl"), f"--kubeconfig={self.kubeconfig}", *words], stdin=stdin, timeout=timeout)

    def apply(self, *objects: dict[str, object]) -> str:
        """Server-side apply of objects given as dictionaries."""
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=listed)

    def start(self, *, scheduler: bool = True) -> None:
        """Start everything; returns when the API answers."""
        packages.ensure(packages.CONTROL_PLANE)
        self.create_credentials()
        self.start_etcd()
        apiserver = self.start_apiserver()
        wait_for("the API server", lambda: self.ready(apiserver), timeout=READY_SECONDS, every=0.1)
        self.start_controller_manager()
        if scheduler:
            self.start_scheduler()

    def ready(self, apiserver: Process) -> bool:
        if not apiserver.alive:
            raise FatalError(f"kube-apiserver ended:\n{tail(self.layout.logs / 'kube-apiserver.log')}")
        return self.kubectl("get", "--raw", "/readyz", timeout=5.0) == "ok"

    def create_credentials(self) -> None:
        """The authority, the server's certificate, and a kubeconfig for each client."""
        address = self.endpoints.address
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        hosts = [f"IP:{ip}" for ip in {address, KUBERNETES_SERVICE, "127.0.0.1"}] + [f"DNS:{name}" for name in names]
        authority = Authority.create(self.layout.pki)
        authority.issue("apiserver", "kube-apiserver", hosts=hosts)
        self.create_client("admin", "admin", groups=["system:masters"], file=self.kubeconfig)
        self.create_client("kube-controller-manager", "system:kube-controller-manager")
        self.create_client("kube-scheduler", "system:kube-scheduler")

    def create_client(self, name: str, user: str, *, groups: Sequence[str] = (), file: Path | None = None) -> Path:
        """A client's certificate and kubeconfig file."""
        client = self.authority.issue(name, user, groups=groups)
        return self.authority.write_kubeconfig(file or self.client(name), self.endpoints.server, client)

    def client(self, name: str) -> Path:
        return self.layout.root / f"{name}.conf"

    def start_daemon(self, name: str, *flags: str) -> Process:
        return spawn(
            name,
            [*self.enter, binary(name), *flags],
            records=self.layout.processes,
            log=self.layout.logs / f"{name}.log",
            env=COLLECT_LESS,
            group=self.group,
        )

    def start_etcd(self) -> Process:
        client = f"http://127.0.0.1:{self.endpoints.etcd}"
        peer = f"http://127.0.0.1:{self.endpoints.etcd_peer}"
        return self.start_daemon(
            "etcd",
            f"--data-dir={self.layout.root / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # The state ends with the cluster: surviving a power cut would only cost time.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def start_apiserver(self) -> Process:
        pki, here = self.authority, self.endpoints
        server, admin, tokens = pki.pair("apiserver"), pki.pair("admin"), pki.service_accounts
        return self.start_daemon(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{here.etcd}",
            f"--advertise-address={here.address}",
            *self.binding_flags(),
            f"--secure-port={here.apiserver}",
            f"--service-cluster-ip-range={SERVICE_SUBNET}",
            f"--client-ca-file={pki.own.certificate}",
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            f"--service-account-key-file={tokens.certificate}",
            f"--service-account-signing-key-file={tokens.key}",
            f"--service-account-issuer={ISSUER}",
            f"--kubelet-client-certificate={admin.certificate}",
            f"--kubelet-client-key={admin.key}",
            # `kubectl logs` would look the node's name up in DNS otherwise.
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            *self.audit_flags(),
        )

    def binding_flags(self) -> list[str]:
        if self.enter:
            return ["--bind-address=0.0.0.0"]  # the namespace has an address for the cluster and one for the machine
        # A Service cannot lead to a loopback address, so `default/kubernetes` stays without endpoints.
        return [f"--bind-address={self.endpoints.address}", "--endpoint-reconciler-type=none"]

    def audit_flags(self) -> list[str]:
        if not self.audit:
            return []
        policy = self.layout.root / "audit-policy.json"
        policy.write_text(json.dumps(configs.audit_policy()))
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}", "--audit-log-format=json"]

    def start_controller_manager(self) -> Process:
        pki = self.authority
        return self.start_daemon(
            "kube-controller-manager",
            f"--kubeconfig={self.client('kube-controller-manager')}",
            f"--root-ca-file={pki.own.certificate}",
            f"--service-account-private-key-file={pki.service_accounts.key}",
            f"--cluster-signing-cert-file={pki.own.certificate}",
            f"--cluster-signing-key-file={pki.own.key}",
            f"--secure-port={self.endpoints.controller_manager}",
            "--bind-address=127.0.0.1",
            "--use-service-account-credentials",
            f"--node-monitor-grace-period={NODE_GRACE}",
            "--leader-elect=false",
            *self.qps_flags(),
        )

    def start_scheduler(self) -> Process:
        return self.start_daemon(
            "kube-scheduler",
            f"--kubeconfig={self.client('kube-scheduler')}",
            f"--secure-port={self.endpoints.scheduler}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            *self.qps_flags(),
        )

    def qps_flags(self) -> list[str]:
        return [f"--kube-api-qps={self.qps}", f"--kube-api-burst={self.qps}"] if self.qps else []

    def wait_for_service_account(self, namespace: str = "default") -> None:
        """Pods are refused until their namespace has its service account."""
        wait_for(
            f"the service account of {namespace}",
            lambda: self.kubectl("-n", namespace, "get", "serviceaccount", "default", "-o", "name"),
            timeout=60.0,
        )

    def processes(self) -> list[Process]:
        return self.processes_of(self.layout)

    @staticmethod
    def processes_of(layout: Layout) -> list[Process]:
        """Every process that was recorded for a cluster, dead ones included."""
        return recorded(layout.processes)

    def log(self, daemon: str) -> str:
        """What a daemon has written."""
        file = self.layout.logs / f"{daemon}.log"
        if not file.is_file():
            raise RigError(f"no log of {daemon}; there is {', '.join(f.stem for f in self.layout.logs.glob('*.log'))}")
        return file.read_text(errors="replace")
