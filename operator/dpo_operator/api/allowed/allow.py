"""What the administrator lets DPOJobs ask for: the chart's values under `allow`. By default little that reaches beyond the job.

The operator checks these rules itself, on every cluster. The chart's ValidatingAdmissionPolicy says the same in CEL, so that
most refusals come at `kubectl apply`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pydantic import Field, StrictBool, StringConstraints

from dpo_operator.api import names
from dpo_operator.api.access import CREDENTIALS_FIELD, HUB_URL, MIRROR_CREDENTIALS_FIELD, PUSH_CREDENTIALS_FIELD
from dpo_operator.api.allowed.environment import VARIABLES
from dpo_operator.api.base import ApiModel
from dpo_operator.api.types import DPOJobSpec

# An exact name, or the beginning of names before a "*". A quote or a backslash fits in no name.
Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/@-]*[*]?$", min_length=1, max_length=512)]
# A beginning of images ends at a part's end: "registry.example*" would also be registry.example.attacker.org.
ImagePattern = Annotated[
    str, StringConstraints(pattern=r"^([*]|[A-Za-z0-9][A-Za-z0-9._:/@-]*([/:@][*])?)$", min_length=1, max_length=512)
]

NODE_ROLE = "node-role.kubernetes.io/"
# Elsewhere than on a hub, a revision means nothing. hf:// may have it in its path.
NO_HUB = re.compile(r"^([./~]|[a-z0-9]+://)")
# After the repository's name: an "@" that comes later is a part of a path.
COMMIT_IN_URL = re.compile(r"^hf://(datasets/)?[^/@]+/[^/@]+@[0-9a-f]{40}(/|$)")
COMMIT = re.compile(r"^[0-9a-f]{40}$")


class Allow(ApiModel):
    """What DPOJobs may ask for. Lists hold names, or beginnings of names before a `*`.

    env: variables in addition to VARIABLES. images: in addition to the operator's own. gpu_resources: in addition to GPU_RESOURCES. unisolated: network.isolate false.
    unlabelled_claims: claims whose owner did not opt in. branches: hub revisions other than commits.
    """

    env: tuple[Pattern, ...] = ()
    images: tuple[ImagePattern, ...] = ()
    secrets: tuple[Pattern, ...] = ("*",)
    service_accounts: tuple[Pattern, ...] = ()
    node_selectors: tuple[Pattern, ...] = ("*",)
    tolerations: tuple[Pattern, ...] = ()
    priority_classes: tuple[Pattern, ...] = ()
    runtime_classes: tuple[Pattern, ...] = ()
    pod_annotations: tuple[Pattern, ...] = ()
    pod_labels: tuple[Pattern, ...] = ()
    gpu_resources: tuple[Pattern, ...] = ()
    resource_claim_templates: tuple[Pattern, ...] = ()
    judge_namespaces: tuple[Pattern, ...] = ()
    host_network: StrictBool = Field(default=False)
    unisolated: StrictBool = Field(default=False)
    unlabelled_claims: StrictBool = Field(default=False)
    branches: StrictBool = Field(default=True)


DEFAULT_ALLOW = Allow()


def refusals(spec: DPOJobSpec, allow: Allow, image: str, namespace: str, generate_image: str = "") -> list[str]:
    """Sentences, one for each thing that the administrator does not allow, or that the cluster lacks; empty when the job may run.

    image, generate_image: the operator's trainer image, and its image with vLLM, empty for none, which are always allowed. namespace: of the job, whose pods its judge may reach. Claims are checked
    when they are read.
    """
    pod, allowed_here = spec.pod, "this cluster allows it only when the chart's value"
    found = [*refused_variables(spec, allow)]
    if pod.image not in (None, image) and not matches(pod.image or "", allow.images):
        found.append(
            f"spec.pod.image: {pod.image} is neither the chart's trainer image nor in the chart's value allow.images"
        )
    if pod.generate_image not in (None, image, generate_image) and not matches(pod.generate_image or "", allow.images):
        found.append(
            f"spec.pod.generateImage: {pod.generate_image} is neither the chart's value generator.image nor in the chart's value allow.images"
        )
    if spec.generates_with_vllm and not (pod.generate_image or generate_image):
        found.append(
            "spec.pod.generateImage: iterative.generation.engine vllm needs an image with vLLM, and the chart's value generator.image names none; "
            "docs/rounds.md says how it is built"
        )
    if pod.network.host_network and not allow.host_network:
        found.append(f"spec.pod.network.hostNetwork: {allowed_here} allow.hostNetwork is true")
    if not pod.network.isolate and not allow.unisolated:
        found.append(f"spec.pod.network.isolate: must be true; {allowed_here} allow.unisolated is true")
    found += _unlisted("spec.pod.nodeSelector", pod.node_selector, allow.node_selectors, "nodeSelectors")
    found += _unlisted("spec.pod.tolerations", (t.key or "" for t in pod.tolerations), allow.tolerations, "tolerations")
    classes = {"spec.pod.priorityClassName": pod.priority_class_name}
    classes["spec.queue.priorityClass"] = spec.queue.priority_class if spec.queue is not None else None
    for field, name in classes.items():
        found += _unlisted(field, [name] if name is not None else [], allow.priority_classes, "priorityClasses")
    runtimes = [pod.runtime_class_name] if pod.runtime_class_name is not None else []
    found += _unlisted("spec.pod.runtimeClassName", runtimes, allow.runtime_classes, "runtimeClasses")
    if not matches(pod.gpu_resource, (*names.GPU_RESOURCES, *allow.gpu_resources)):
        found.append(
            f"spec.pod.gpuResource: {pod.gpu_resource} is neither one of {', '.join(names.GPU_RESOURCES)} nor in the chart's value "
            "allow.gpuResources"
        )
    templates = [claim.resource_claim_template_name for claim in pod.resource_claims]
    found += _unlisted("spec.pod.resourceClaims", templates, allow.resource_claim_templates, "resourceClaimTemplates")
    found += _unlisted("spec.pod.annotations", pod.annotations, allow.pod_annotations, "podAnnotations")
    found += _unlisted("spec.pod.labels", pod.labels, allow.pod_labels, "podLabels")
    accounts = [pod.service_account_name] if pod.service_account_name is not None else []
    found += _unlisted("spec.pod.serviceAccountName", accounts, allow.service_accounts, "serviceAccounts")
    asked = [name for name in _judge_namespaces(spec) if name != namespace]
    found += _unlisted(
        "spec.iterative.judge.endpoint.allowTo.namespace", asked, allow.judge_namespaces, "judgeNamespaces"
    )
    for field, name in _secrets(spec):
        found += _unlisted(field, [name], allow.secrets, "secrets")
    return found + ([] if allow.branches else list(_branches(spec)))


def refused_variables(spec: DPOJobSpec, allow: Allow) -> list[str]:
    """Sentences, one for each variable of pod.env that is on no list."""
    return [
        f"spec.pod.env: {variable.name} is not one of the variables that every DPOJob may set (docs/reference/environment.md), nor in "
        "the chart's value allow.env"
        for variable in spec.pod.env
        if not matches(variable.name, (*VARIABLES, *allow.env))
    ]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is listed, or begins as a pattern does before its `*`."""
    return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in patterns)


def _unlisted(field: str, found: Iterable[str], patterns: Sequence[str], value: str) -> Iterator[str]:
    for name in found:
        # Labels of the control plane are in no list that does not name them.
        listed = [p for p in patterns if p.startswith(NODE_ROLE)] if name.startswith(NODE_ROLE) else patterns
        if not matches(name, listed):
            yield f"{field}: {name or 'all'} is not in the chart's value allow.{value}"


def _secrets(spec: DPOJobSpec) -> Iterator[tuple[str, str]]:
    """Field and name of every Secret that the spec names."""
    yield from (("spec.pod.imagePullSecrets", name) for name in spec.pod.image_pull_secrets)
    if (token := spec.model.token_secret_ref) is not None:
        yield "spec.model.tokenSecretRef", token.name
    if (credentials := spec.way_out.credentials_secret_ref) is not None:
        yield CREDENTIALS_FIELD, credentials.name
    push = spec.export.push
    if push is not None and push.credentials_secret_ref is not None:
        yield PUSH_CREDENTIALS_FIELD, push.credentials_secret_ref.name
    mirror = spec.checkpoint.mirror
    if mirror is not None and mirror.credentials_secret_ref is not None:
        yield MIRROR_CREDENTIALS_FIELD, mirror.credentials_secret_ref.name
    wandb = spec.tracking.wandb
    if wandb is not None and wandb.api_key_secret_ref is not None:
        yield "spec.tracking.wandb.apiKeySecretRef", wandb.api_key_secret_ref.name
    endpoint = spec.iterative.judge.endpoint if spec.iterative is not None else None
    if endpoint is not None and endpoint.api_key_secret_ref is not None:
        yield "spec.iterative.judge.endpoint.apiKeySecretRef", endpoint.api_key_secret_ref.name


def _judge_namespaces(spec: DPOJobSpec) -> Iterator[str]:
    """Namespace whose pods the judge's pod wants to reach."""
    endpoint = spec.iterative.judge.endpoint if spec.iterative is not None else None
    if endpoint is not None and endpoint.allow_to is not None:
        yield endpoint.allow_to.namespace


def _branches(spec: DPOJobSpec) -> Iterator[str]:
    sources = [*spec.model.sources]
    sources += [("spec.data: revision", dataset.source, dataset.revision) for dataset in spec.data.datasets]
    if spec.iterative is not None:
        prompts, model = spec.iterative.prompts, spec.iterative.judge.reward_model
        sources += [] if prompts is None else [("spec.iterative.prompts.revision", prompts.source, prompts.revision)]
        sources += [] if model is None else [("spec.iterative.judge.rewardModel.revision", model.name, model.revision)]
    for field, source, revision in sources:
        on_hub = source.startswith(HUB_URL) or not NO_HUB.search(source)
        if on_hub and not COMMIT.search(revision or "") and not COMMIT_IN_URL.search(source):
            yield (
                f"{field}: {source} must have a commit of 40 hexadecimal digits, found {revision or 'nothing'}; a branch or tag is "
                "allowed only when the chart's value allow.branches is true"
            )
