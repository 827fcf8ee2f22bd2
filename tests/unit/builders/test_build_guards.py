"""PodDisruptionBudget and NetworkPolicies, read field by field."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from dpo_operator.api import names
from dpo_operator.builders.guards import (
    build_budget,
    build_generate_policy,
    build_guards,
    build_judge_policy,
    build_prepare_policy,
    build_rank_policy,
)
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.networks import CLOSED, Networks
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.planning import guarding
from dpo_operator.planning.actions import Create, Patch
from dpo_operator.planning.objects import Guard
from tests.unit.planning.build import UID, a_job, a_status, a_view, decide

pytestmark = pytest.mark.unit

OPERATORS = Networks(metrics_namespaces=("dpo-system", "prometheus"))


def labels_of(phase, job):
    return build_child_job(job, phase, 1, TrainerImage("t:1"))["spec"]["template"]["metadata"]["labels"]


OPENED = Networks(open=("10.1.0.0/16",))


def with_endpoint(**fields):
    """Rounds whose judge is behind an endpoint."""
    return {"judge": {"type": "endpoint", "endpoint": {"url": "https://judge.example/v1", "model": "m", **fields}}}


def selects(selector, labels):
    """Whether a label selector fits, as Kubernetes reads it."""
    fits = selector.get("matchLabels", {}).items() <= labels.items()
    return fits and all(
        labels.get(e["key"]) in e["values"] and e["operator"] == "In" for e in selector.get("matchExpressions", ())
    )


@pytest.mark.parametrize(
    ("nodes", "evictions", "least"),
    [(4, "OneAtATime", 3), (2, "OneAtATime", 1), (4, "Refuse", 4), (1, "Refuse", 1), (1, "OneAtATime", None)],
)
def test_drains_take_one_rank_at_a_time_or_none(nodes, evictions, least):
    job = a_job(nodes=nodes, pod={"evictions": evictions})
    budget = build_budget(job)
    if least is None:
        assert budget is None
        return
    assert budget["spec"]["minAvailable"] == least
    assert "maxUnavailable" not in budget["spec"]
    assert [phase for phase in names.PHASES if selects(budget["spec"]["selector"], labels_of(phase, job))] == ["train"]
    rounds = a_job(nodes=nodes, pod={"evictions": evictions}, iterative=with_endpoint())
    both = build_budget(rounds)["spec"]
    assert [phase for phase in names.PHASES if selects(both["selector"], labels_of(phase, rounds))] == [
        "generate",
        "train",
    ]


def test_each_phase_has_one_policy():
    job = a_job()
    builders = (build_prepare_policy, build_generate_policy, build_judge_policy, build_rank_policy)
    policies = [build_policy(job, CLOSED) for build_policy in builders]
    for phase in names.PHASES:
        assert sum(selects(p["spec"]["podSelector"], labels_of(phase, job)) for p in policies) == 1
    other = a_job(metadata={"uid": "another"})
    assert not any(selects(p["spec"]["podSelector"], labels_of("train", other)) for p in policies)
    assert all(p["spec"]["policyTypes"] == ["Ingress", "Egress"] for p in policies)


def test_ranks_talk_to_their_own_and_are_scraped():
    job = a_job()
    spec = build_rank_policy(job, OPERATORS)["spec"]
    peers, scrape = spec["ingress"]
    assert "ports" not in peers
    (peer,) = peers["from"]
    # Pods of the job's own namespace: without a namespaceSelector a podSelector sees no other.
    assert set(peer) == {"podSelector"}
    assert selects(peer["podSelector"], labels_of("train", job))
    assert not selects(peer["podSelector"], labels_of("prepare", job))
    assert scrape["ports"] == [{"protocol": "TCP", "port": 9400}]
    (namespaces,) = scrape["from"]
    (expression,) = namespaces["namespaceSelector"]["matchExpressions"]
    assert (expression["key"], expression["values"]) == ("kubernetes.io/metadata.name", ["dpo-system", "prometheus"])


def test_ranks_reach_nothing_outside():
    own, dns = build_rank_policy(a_job(), OPERATORS)["spec"]["egress"]
    assert own["to"][0]["podSelector"]["matchLabels"][names.LABEL_UID] == UID
    assert {(p["protocol"], p["port"]) for p in dns["ports"]} == {(p, n) for p in ("UDP", "TCP") for n in (53, 5353)}
    # Of the cluster's own pods and of the node: a port that is open to everywhere is a way out.
    assert dns["to"][0] == {"namespaceSelector": {}}
    # 100.64.0.0/10 is shared by providers' networks, and no more global than the private ones.
    assert not any(ip_network(to["ipBlock"]["cidr"]).is_global for to in dns["to"][1:])


def test_who_generates_reaches_nothing():
    assert build_generate_policy(a_job(iterative=with_endpoint()), OPERATORS)["spec"]["egress"] == []
    (scrape,) = build_generate_policy(a_job(iterative=with_endpoint()), OPERATORS)["spec"]["ingress"]
    assert scrape["ports"] == [{"protocol": "TCP", "port": 9400}]


def test_a_judge_reaches_its_endpoint_alone():
    def egress(job):
        return build_judge_policy(job, OPENED)["spec"]["egress"]

    dns, public = egress(a_job(iterative=with_endpoint()))
    assert public == {"to": OPENED.outside(), "ports": [{"protocol": "TCP", "port": 443}]}
    assert {port["port"] for port in dns["ports"]} == {53, 5353}
    allow_to = {"namespace": "judges", "podLabels": {"app": "judge"}, "port": 8000}
    _, inside = egress(a_job(iterative=with_endpoint(url="http://judge.judges.svc:80/v1", allowTo=allow_to)))
    (peer,) = inside["to"]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "judges"}}
    assert peer["podSelector"] == {"matchLabels": {"app": "judge"}}
    assert inside["ports"] == [{"protocol": "TCP", "port": 8000}]
    proxied = a_job(iterative=with_endpoint(), access={"proxy": {"url": "http://proxy.example:3128"}})
    assert egress(proxied)[1]["ports"] == [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 3128}]
    assert egress(a_job(iterative={"judge": {"type": "rewardModel", "rewardModel": {"name": "org/m"}}})) == []


def test_a_tracker_online_needs_https():
    wandb = {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "k"}}
    egress = build_rank_policy(a_job(tracking={"wandb": wandb}), CLOSED)["spec"]["egress"]
    assert egress[2]["ports"] == [{"protocol": "TCP", "port": 443}]
    assert egress[2]["to"] == CLOSED.outside()
    assert len(build_rank_policy(a_job(tracking={"wandb": {"project": "p"}}), CLOSED)["spec"]["egress"]) == 2


def test_prepare_downloads_and_gets_no_credentials_of_the_node():
    spec = build_prepare_policy(a_job(), OPERATORS)["spec"]
    anywhere = spec["egress"][0]
    assert "ports" not in anywhere
    assert anywhere["to"] == OPERATORS.outside()
    (scrape,) = spec["ingress"]
    assert scrape["ports"][0]["port"] == 9400


@pytest.mark.parametrize("unisolated", [False, True])
def test_isolation_can_be_turned_off_only_if_the_administrator_lets_jobs(unisolated):
    job = a_job(pod={"network": {"isolate": False}})
    kinds = [guard["kind"] for guard in build_guards(job, "train", Networks(unisolated=unisolated))]
    assert kinds == ["PodDisruptionBudget"] if unisolated else ["PodDisruptionBudget", "NetworkPolicy"]


def test_all_guards_go_with_their_job():
    job = a_job(queue={"kind": "Volcano"})
    guards = [guard for phase in ("prepare", "train", "export") for guard in build_guards(job, phase)]
    assert len(guards) == 6
    for guard in guards:
        assert guard["metadata"]["ownerReferences"][0]["uid"] == UID
        assert guard["metadata"]["namespace"] == "default"


def present(job, phase="train", namespaces=OPERATORS, **fields):
    return tuple(
        Guard(
            **{
                "kind": g["kind"],
                "name": g["metadata"]["name"],
                "uid": f"uid-{g['metadata']['name']}",
                "owner_uid": UID,
                "spec": g["spec"],
            }
            | fields
        )
        for g in build_guards(job, phase, namespaces)
    )


@pytest.mark.parametrize(
    "opened",
    [
        {"egress": [{}]},
        {"policyTypes": ["Ingress"]},
        {"podSelector": {"matchLabels": {"a": "b"}}},
        {"ingress": None},
        {"more": 1},
    ],
)
def test_policy_that_a_hand_changed_is_closed_again(opened):
    (policy,) = [guard for guard in present(a_job()) if guard.kind == "NetworkPolicy"]
    wanted = dict(policy.spec)
    assert guarding.correction(wanted, wanted) == {}
    changed = {key: value for key, value in (wanted | opened).items() if value is not None}
    guards = tuple(replace(g, spec=changed) if g.kind == policy.kind else g for g in present(a_job()))
    (patch,) = guarding.repairs(a_job(), "train", a_view(guards=guards), OPERATORS)
    assert merged(changed, patch.manifest["spec"]) == wanted


def merged(value, patch):
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    value = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        value[key] = merged(value.get(key), part)
    return {key: part for key, part in value.items() if part is not None}


def test_what_the_api_server_leaves_out_or_a_crd_adds_is_no_change():
    assert guarding.correction({"a": {}}, {"a": {}, "b": []}) == {}
    assert guarding.correction({"a": 1, "more": 2}, {"a": 1}, keeps_more=True) == {}
    assert guarding.correction({"a": 1, "more": 2}, {"a": 1}) == {"more": None}


def test_guards_are_made_before_any_pod_and_followed_when_settings_change():
    job = a_job()
    none = guarding.repairs(job, "train", a_view(guards=()), OPERATORS)
    assert [type(action) for action in none] == [Create, Create]
    for phase in ("prepare", "train", "export"):
        assert guarding.repairs(job, phase, a_view(guards=present(job, phase)), OPERATORS) == ()
        assert guarding.repairs(job, phase, a_view(guards=None), OPERATORS) == ()
        name = "prepare" if phase == "prepare" else "train"
        (moved,) = guarding.repairs(
            job, phase, a_view(guards=present(job, phase)), Networks(metrics_namespaces=("elsewhere",))
        )
        assert (type(moved), moved.kind, moved.uid) == (Patch, "NetworkPolicy", f"uid-pairs-{name}")
    resized = guarding.repairs(a_job(nodes=3), "train", a_view(guards=present(job)), OPERATORS)
    assert [(a.kind, a.manifest["spec"]["minAvailable"]) for a in resized] == [("PodDisruptionBudget", 2)]
    kinds = {
        phase: [a.kind for a in decide(a_status(phase, created=False), a_view(guards=())).actions]
        for phase in ("prepare", "train")
    }
    assert kinds == {"prepare": ["NetworkPolicy"], "train": ["PodDisruptionBudget", "NetworkPolicy"]}


def test_a_guard_of_somebody_else_is_not_taken_over():
    plan = decide(a_status("prepare", created=False), a_view(guards=present(a_job(), owner_uid="other")))
    assert plan.actions == ()
    assert "does not belong to this job" in plan.status.message
