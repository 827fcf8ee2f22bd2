"""The kubectl commands on the pages, against a real API server, with the plugin found as kubectl finds it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.mutants import a_job
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.control_plane import ControlPlane
from tests.contract.pages import KUBECTL, PLUGIN

pytestmark = pytest.mark.apiserver

# The state of a job for which each command of the plugin makes sense, and spec.suspend before and after it.
STATES = {"suspend": ("Training", False, True), "resume": ("Suspended", True, False), "retry": ("Failed", True, False)}

# What commands that change nothing say of the job of the reader's folder.
SAID = {
    "why": "helpful (namespace default) is pending: no operator has looked at it yet",
    "list": "helpful",
    "status": "helpful (namespace default)",
    "events": "No events",
    # Without an operator there are no pods.
    "logs": "waiting: no operator has looked at the job yet",
    "submit": "dpojob.dpo-operator.dev/helpful created",
    "delete": "helpful is being deleted; its files stay on the claim",
}


@pytest.fixture
def reader(dpojobs: Requests, control_plane: ControlPlane, tmp_path: Path) -> Path:
    """A reader's folder with a job file, and a cluster with the objects that the pages name."""
    job = a_job()
    job["metadata"] = {"name": "helpful"}
    (tmp_path / "dpojob.yaml").write_text(yaml.safe_dump(job))
    config = {"metadata": {"name": "helpful-config-0123456789"}, "data": {"job.json": '{"kind": "DPOJob"}'}}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "datasets", "namespace": "default"},
            "spec": claim,
        },
        {**job, "metadata": {"name": "helpful", "namespace": "default"}},
        {"apiVersion": "v1", "kind": "ConfigMap", **config, "metadata": {**config["metadata"], "namespace": "default"}},
    )
    return tmp_path


def kubectl(command: tuple[str, ...], plane: ControlPlane, folder: Path, seconds: float = 60) -> str:
    """Run kubectl as a reader with this cluster's kubeconfig; what it printed until it ended or its time was over."""
    path = f"{binary('kubectl').parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(plane.kubeconfig)}
    done = subprocess.run(
        ["timeout", str(seconds), *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    watching = "-w" in command or ("logs" in command and "-f" in command)
    assert done.returncode == (124 if watching else 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", KUBECTL, ids=" ".join)
def test_a_kubectl_command_works(command: tuple[str, ...], reader: Path, control_plane: ControlPlane):
    said = kubectl(command, control_plane, reader, 5 if "-w" in command else 60)
    wanted = {"apply": "helpful", "describe": "helpful", "explain": "learningRate", "label": "labeled"}
    assert wanted.get(command[1], "DPOJob" if "configmap" in command else "STATE") in said


@pytest.mark.parametrize("command", PLUGIN, ids=" ".join)
def test_a_command_of_the_plugin_works(command: tuple[str, ...], reader: Path, control_plane: ControlPlane):
    if "--help" in command:
        assert "suspend" in kubectl(command, control_plane, reader)
        return
    verb, name = command[2], command[-1 if len(command) < 4 else 3]
    if verb == "submit":
        control_plane.kubectl("delete", "dpojobs.dpo-operator.dev", "helpful", "-n", "default")
    if verb in SAID:
        assert SAID[verb] in kubectl(command, control_plane, reader, 8 if {"-w", "-f"} & set(command) else 60)
        return
    namespace = command[command.index("-n") + 1] if "-n" in command else "default"
    if namespace != "default":
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    state, before, after = STATES[verb]
    control_plane.apply({**a_job(suspend=before), "metadata": {"name": name, "namespace": namespace}})
    job = (f"{names.PLURAL}.{names.GROUP}", name, "-n", namespace)
    status = json.dumps({"status": {"state": state}})
    control_plane.kubectl("patch", *job, "--subresource=status", "--type=merge", f"--patch={status}")
    kubectl(command, control_plane, reader)
    found = json.loads(control_plane.kubectl("get", *job, "-o", "json"))
    assert found["spec"]["suspend"] is after
    assert (names.ANNOTATION_RETRY in found["metadata"].get("annotations", {})) == (verb == "retry")
    control_plane.kubectl("delete", *job)
