"""The chart: what it renders, what it refuses, and what it gives the right to."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api import names
from dpo_operator.api.allowed.allow import Allow
from dpo_operator.builders.networks import Networks
from dpo_operator.builders.queue import Schedulers
from dpo_operator.config import Config
from dpo_operator.generate import crd
from dpo_operator.generate.dashboards.catalogue import catalogue
from tests.contract.chart import CHART, NAMESPACE, HelmError, helm, render

pytestmark = pytest.mark.contract

GOLDEN = Path(__file__).parent / "golden"
MONITORS = ("monitoring.operator.enabled=true", "monitoring.trainer.enabled=true")
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def test_helm_finds_nothing_to_complain_about() -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def test_the_crd_is_the_generated_one() -> None:
    rendered = render().one("CustomResourceDefinition")
    assert rendered["spec"] == crd.crd()["spec"]
    assert rendered["metadata"]["name"] == crd.NAME


@pytest.mark.parametrize(
    ("settings", "annotations"),
    [((), {"helm.sh/resource-policy": "keep"}), (("crds.keep=false",), None)],
)
def test_the_crd_is_kept_unless_told_otherwise(settings: tuple[str, ...], annotations: Any) -> None:
    assert render(*settings).one("CustomResourceDefinition")["metadata"].get("annotations") == annotations


def test_the_crd_can_come_from_elsewhere() -> None:
    assert render("crds.enabled=false").all("CustomResourceDefinition") == []


def test_rights_are_the_golden_ones() -> None:
    golden = yaml.safe_load((GOLDEN / "rights.yaml").read_text(encoding="utf-8"))
    assert render().one("ClusterRole", "dpo-operator")["rules"] == golden
    lease = yaml.safe_load((GOLDEN / "lease-rights.yaml").read_text(encoding="utf-8"))
    assert [role["rules"] for role in render().all("Role")] == [lease]
    rendered = render("watchNamespaces={team-a,team-b}")
    assert {
        (role["metadata"]["namespace"], role["metadata"]["name"]): role["rules"] for role in rendered.all("Role")
    } == {
        (NAMESPACE, "dpo-operator-lease"): lease,
        ("team-a", "dpo-operator"): golden,
        ("team-b", "dpo-operator"): golden,
    }


@pytest.mark.parametrize(
    ("queue", "group"), [("volcano", "scheduling.volcano.sh"), ("schedulerPlugins", "scheduling.x-k8s.io")]
)
def test_pod_groups_are_a_right_only_when_asked_for(queue: str, group: str) -> None:
    golden = yaml.safe_load((GOLDEN / "rights.yaml").read_text(encoding="utf-8"))
    rules = render(f"queues.{queue}.enabled=true").one("ClusterRole", "dpo-operator")["rules"]
    added = [rule for rule in rules if rule not in golden]
    assert added == [{"apiGroups": [group], "resources": ["podgroups"], "verbs": ["get", "create", "patch"]}]


def test_the_policy_knows_the_same_gpus_as_the_operator() -> None:
    listed = ", ".join(f"'{name}'" for name in names.GPU_RESOURCES)
    policies = render().all("ValidatingAdmissionPolicy")
    assert any(
        f"variables.spec.pod.gpuResource in [{listed}]" in check["expression"]
        for policy in policies
        for check in policy["spec"]["validations"]
    )


def test_no_right_is_dangerous() -> None:
    for role in (*render().all("ClusterRole"), *render("watchNamespaces={a}").all("Role")):
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert "*" not in words
            assert not words & {"secrets", "nodes", "persistentvolumes", "pods/exec", "pods/attach", "escalate", "bind"}
            assert not words & {"impersonate", "rbac.authorization.k8s.io", "serviceaccounts", "serviceaccounts/token"}


def test_users_never_write_the_status() -> None:
    for suffix in ("view", "edit"):
        role = render().one("ClusterRole", f"dpo-operator-{suffix}")
        for rule in role["rules"]:
            if "dpojobs/status" in rule["resources"]:
                assert set(rule["verbs"]) == {"get", "list", "watch"}
    edit = render().one("ClusterRole", "dpo-operator-edit")
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"


def test_chosen_namespaces_get_roles_and_nothing_is_cluster_wide() -> None:
    rendered = render("watchNamespaces={team-a,team-b}", "crds.enabled=false", "admission.enabled=false")
    assert {o["kind"] for o in rendered.objects} == {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    }
    assert {role["metadata"]["namespace"] for role in rendered.all("Role")} == {NAMESPACE, "team-a", "team-b"}
    for binding in rendered.all("RoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "dpo-operator", "namespace": NAMESPACE}]
    assert rendered.environment["WATCH_NAMESPACES"] == "team-a,team-b"


def test_the_operator_understands_its_environment() -> None:
    rendered = render(
        "operator.logFormat=plain",
        "operator.resyncSeconds=45",
        "operator.progressSeconds=7",
        "operator.workers=2",
        "operator.gpuMemory=80Gi",
        "trainer.image.repository=team/trainer",
        "trainer.image.tag=v1",
        "trainer.image.pullPolicy=Always",
        "watchNamespaces={a,b}",
        "monitoring.namespaces={prometheus,dpo-system}",
        "queues.volcano.schedulerName=v",
        "queues.schedulerPlugins.schedulerName=p",
        "queues.kai.schedulerName=k",
        "allow.env={WANDB_*}",
        "allow.hostNetwork=true",
        "allow.unisolated=true",
        "network.open={10.1.2.0/24}",
        "network.openNamespaces={minio}",
        "network.closed={203.0.113.7/32}",
    )
    config = Config.from_environment(rendered.environment)
    assert (config.image.name, config.image.pull_policy) == ("team/trainer:v1", "Always")
    assert (config.log_format, config.resync_seconds, config.progress_seconds, config.workers) == ("plain", 45, 7, 2)
    assert config.gpu_memory == 80 * 2**30
    assert config.allow == Allow(env=("WANDB_*",), host_network=True, unisolated=True)
    assert config.networks == Networks(
        metrics_namespaces=(NAMESPACE, "prometheus"),
        open=("10.1.2.0/24",),
        open_namespaces=("minio",),
        closed=("203.0.113.7/32",),
        unisolated=True,
    )
    assert config.namespaces == ("a", "b")
    # The operator reads progress itself, so its namespace is always one of them.
    assert config.networks.metrics_namespaces == (NAMESPACE, "prometheus")
    assert config.schedulers == Schedulers(volcano="v", plugins="p", kai="k")
    ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    assert (ports["metrics"], ports["health"]) == (config.metrics_port, config.health_port)


def test_the_defaults_are_the_operators_own() -> None:
    environment = render().environment
    known = {name: environment[name] for name in ("DPO_TRAINER_IMAGE", "DPO_METRICS_NAMESPACES")}
    assert Config.from_environment(environment) == Config.from_environment(known)


@pytest.mark.parametrize(
    ("settings", "operator", "trainer"),
    [
        ((), "dpo-operator:0.1.0", "dpo-trainer:0.1.0"),
        (("global.imageRegistry=mirror",), "mirror/dpo-operator:0.1.0", "mirror/dpo-trainer:0.1.0"),
        (
            ("global.imageRegistry=mirror", "operator.image.registry=own", "operator.image.tag=v2"),
            "own/dpo-operator:v2",
            "mirror/dpo-trainer:0.1.0",
        ),
        (
            (f"operator.image.digest=sha256:{'a' * 64}", "operator.image.tag=v2"),
            f"dpo-operator@sha256:{'a' * 64}",
            "dpo-trainer:0.1.0",
        ),
    ],
)
def test_images(settings: tuple[str, ...], operator: str, trainer: str) -> None:
    rendered = render(*settings)
    assert rendered.container["image"] == operator
    assert rendered.environment["DPO_TRAINER_IMAGE"] == trainer


def test_an_image_with_vllm_is_allowed_where_the_chart_names_one() -> None:
    def rules(*settings: str) -> list[str]:
        policies = render(*settings).all("ValidatingAdmissionPolicy")
        return [
            str(rule) for policy in policies for rule in policy["spec"]["validations"] if "generateImage" in str(rule)
        ]

    assert render().environment["DPO_GENERATE_IMAGE"] == ""
    settings = ("global.imageRegistry=mirror", "generator.image.repository=team/dpo-vllm")
    environment, image = render(*settings).environment, "mirror/team/dpo-vllm:0.1.0"
    assert environment["DPO_GENERATE_IMAGE"] == image
    assert Config.from_environment(environment).image.generate == image
    listed, missing = rules()
    assert image not in listed
    assert "generator.image names none" in missing
    (listed,) = rules(*settings)
    assert image in listed


def test_one_of_several_operators_acts() -> None:
    spec = render().one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "RollingUpdate")
    assert render().all("PodDisruptionBudget") == []
    several = render("operator.replicas=2")
    assert several.one("Deployment")["spec"]["replicas"] == 2
    budget = several.one("PodDisruptionBudget")["spec"]
    labels = several.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    pod = several.one("Deployment")["spec"]["template"]["spec"]
    assert "podAntiAffinity" in pod["affinity"]
    known = {"POD_NAME": "pod-1", "POD_NAMESPACE": NAMESPACE}
    from_pod = [v["name"] for v in several.container["env"] if "valueFrom" in v]
    assert set(from_pod) == set(known)
    election = Config.from_environment(several.environment | known).election
    assert election is not None
    assert (election.namespace, election.name, election.identity) == (NAMESPACE, "dpo-operator", "pod-1")


def test_the_operators_pod_is_restricted() -> None:
    pod = render().one("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = render().container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert render().container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert render().container["resources"]["limits"]["memory"]


def test_every_object_has_the_common_labels() -> None:
    for o in render(*MONITORS).objects:
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "dpo-operator", o["metadata"]["name"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/instance"] == "dpo-operator"


def test_placement_reaches_the_pod() -> None:
    rendered = render(
        "nodeSelector.disk=ssd",
        "tolerations[0].key=infra",
        "tolerations[0].operator=Exists",
        "priorityClassName=high",
        "imagePullSecrets[0].name=pull",
        "podAnnotations.a=b",
        "podLabels.team=ml",
        "affinity.nodeAffinity.x=y",
    )
    template = rendered.one("Deployment")["spec"]["template"]
    pod = template["spec"]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"][0] == {"key": "infra", "operator": "Exists"}
    assert [(t["key"], t["tolerationSeconds"]) for t in pod["tolerations"][1:]] == [
        ("node.kubernetes.io/not-ready", 15),
        ("node.kubernetes.io/unreachable", 15),
    ]
    assert pod["priorityClassName"] == "high"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["affinity"] == {"nodeAffinity": {"x": "y"}}
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert template["metadata"]["labels"]["team"] == "ml"


def test_no_monitor_unless_asked_for() -> None:
    assert render().all("PodMonitor") == []


def test_monitors_find_the_pods_and_name_the_job() -> None:
    rendered = render(*MONITORS, "monitoring.trainer.additionalLabels.release=prometheus")
    operator = rendered.one("PodMonitor", "dpo-operator")["spec"]
    pod_labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["selector"]["matchLabels"].items() <= pod_labels.items()
    assert operator["podMetricsEndpoints"][0]["honorLabels"] is True

    monitor = rendered.one("PodMonitor", "dpo-operator-trainer")
    trainer = monitor["spec"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert trainer["selector"]["matchLabels"] == {names.LABEL_PART_OF: names.PART_OF}
    assert trainer["selector"]["matchExpressions"] == [{"key": names.LABEL_JOB, "operator": "Exists"}]
    assert trainer["namespaceSelector"] == {"any": True}
    (endpoint,) = trainer["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["honorLabels"]) == (names.METRICS_PORT_NAME, False)
    source = "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", names.LABEL_JOB)
    assert {"sourceLabels": [source], "targetLabel": "dpojob"} in endpoint["relabelings"]


def test_a_trainer_pod_can_not_fill_prometheus_or_speak_for_the_operator() -> None:
    trainer = render(*MONITORS).one("PodMonitor", "dpo-operator-trainer")["spec"]
    assert (trainer["sampleLimit"], trainer["bodySizeLimit"]) == (2000, "1MB")
    limits = ("labelLimit", "labelNameLengthLimit", "labelValueLengthLimit")
    assert all(trainer[limit] <= 640 for limit in limits)
    (rule,) = trainer["podMetricsEndpoints"][0]["metricRelabelings"]
    assert (rule["action"], rule["sourceLabels"]) == ("keep", ["__name__"])
    exported = {name for metric in catalogue() for name in metric.series if metric.source == "trainer"}
    assert exported
    assert all(re.fullmatch(rule["regex"], name) for name in exported)
    foreign = {name for metric in catalogue() for name in metric.series if name.startswith("dpojob_")}
    assert not [name for name in {*foreign, "up", "kube_pod_info"} if re.fullmatch(rule["regex"], name)]


def test_monitors_stay_within_the_chosen_namespaces() -> None:
    trainer = render(*MONITORS, "watchNamespaces={a,b}").one("PodMonitor", "dpo-operator-trainer")["spec"]
    assert trainer["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_dashboards_are_config_maps_for_the_sidecar() -> None:
    found = render("dashboards.namespace=grafana", "dashboards.annotations.folder=DPO").all("ConfigMap")
    assert len(found) == len(list((CHART / "dashboards").glob("*.json"))) == 2
    for made in found:
        assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert made["metadata"]["namespace"] == "grafana"
        assert made["metadata"]["annotations"] == {"folder": "DPO"}
        ((file, text),) = made["data"].items()
        assert json.loads(text) == json.loads((CHART / "dashboards" / file).read_text(encoding="utf-8"))
    own = render(release="other").all("ConfigMap")
    # Prometheus' label of what that release's PodMonitor scrapes.
    assert all(f"{NAMESPACE}/other-dpo-operator" in text for made in own for text in made["data"].values())
    assert render("dashboards.enabled=false").all("ConfigMap") == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("operater.workers=2", "additional properties 'operater' not allowed"),
        ("operator.image.name=x", "additional properties 'name' not allowed"),
        ("operator.workers=0", "minimum"),
        ("operator.replicas=0", "minimum"),
        ("operator.workers=two", "want integer"),
        ("operator.gpuMemory=80gb", "does not match pattern"),
        ("operator.logFormat=xml", "value must be one of 'json', 'plain'"),
        ("operator.image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("operator.image.digest=abc", "does not match pattern"),
        ("watchNamespaces={Team A}", "does not match pattern"),
        ("crds.keep=perhaps", "want boolean"),
        ("monitoring.trainer.interval=often", "does not match pattern"),
        ("serviceAccount.name=a/b", "does not match pattern"),
    ],
)
def test_a_wrong_value_is_refused(setting: str, said: str) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(setting)


def test_a_parent_chart_may_add_what_helm_and_it_need() -> None:
    render("global.anything.else=1", "enabled=true")


def documented(schema: Any, values: Any, path: str = "") -> list[str]:
    """Values without a description in the schema."""
    missing = []
    for key, value in values.items():
        child = schema.get("properties", {}).get(key)
        if child is None or not child.get("description"):
            missing.append(f"{path}{key}")
        elif "properties" in child:
            missing += documented(child, value, f"{path}{key}.")
    return missing


def test_every_value_is_described() -> None:
    assert documented(SCHEMA, VALUES) == []


def test_the_release_name_is_in_the_names() -> None:
    assert render(release="blue").one("Deployment")["metadata"]["name"] == "blue-dpo-operator"
    assert render("fullnameOverride=x", release="blue").one("ServiceAccount")["metadata"]["name"] == "x"


def test_an_own_service_account_is_used() -> None:
    rendered = render("serviceAccount.create=false", "serviceAccount.name=given")
    assert rendered.all("ServiceAccount") == []
    assert rendered.one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "given"
    assert rendered.one("ClusterRoleBinding")["subjects"][0]["name"] == "given"


def test_the_admission_policies_cover_the_watched_namespaces_alone() -> None:
    bindings = render("watchNamespaces={team-a,team-b}").all("ValidatingAdmissionPolicyBinding")
    assert len(bindings) == 2
    for binding in bindings:
        (names_,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
        assert (names_["operator"], names_["values"]) == ("In", ["team-a", "team-b"])
    for binding in render().all("ValidatingAdmissionPolicyBinding"):
        assert "matchResources" not in binding["spec"]


@pytest.mark.parametrize("setting", ["allow.images={registry.example*}", "allow.env={A'B}", "allow.hostnetwork=true"])
def test_a_pattern_that_would_surprise_is_refused_by_helm(setting: str) -> None:
    with pytest.raises(HelmError, match="allow"):
        render(setting)
