"""A real admission webhook: HTTPS on loopback, and what it answers is the test's to say."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cluster.rig.control_plane import ControlPlane

NAME = "guard.example.org"
GROUPS = {"pods": "", "jobs": "batch"}


@dataclass
class Webhook:
    """refusal: what creations are refused with; empty lets them pass. delay: seconds before each answer. asked: requests so far."""

    refusal: str = ""
    delay: float = 0.0
    asked: int = 0

    def answer(self, review: dict[str, Any]) -> dict[str, Any]:
        """The AdmissionReview with a response."""
        self.asked += 1
        time.sleep(self.delay)
        response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": not self.refusal}
        if self.refusal:
            response["status"] = {"code": 403, "message": self.refusal}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


@contextmanager
def webhook(plane: ControlPlane, namespace: str, resource: str, *, timeout: int = 5) -> Iterator[Webhook]:
    """It's asked about creations of a resource in one namespace, and the API server takes no answer for a refusal."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(hook.answer(review)).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the API server did not wait for it

        def log_message(self, format: str, *args: object) -> None:
            pass

    pair = plane.authority.issue(f"webhook-{namespace}", "webhook", hosts=["IP:127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    authority = base64.b64encode(plane.authority.own.certificate.read_bytes()).decode()
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"guard-{namespace}"},
        "webhooks": [
            {
                "name": NAME,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": timeout,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [
                    {"apiGroups": [GROUPS[resource]], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
                ],
                "clientConfig": {"url": f"https://127.0.0.1:{server.server_port}/", "caBundle": authority},
            }
        ],
    }  # fmt: skip
    try:
        plane.apply(configuration)
        # The API server learns of it by a watch.
        time.sleep(2)
        yield hook
    finally:
        plane.kubectl("delete", "validatingwebhookconfiguration", f"guard-{namespace}", "--ignore-not-found")
        server.shutdown()
        server.server_close()
