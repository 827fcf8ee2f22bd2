"""Keys, endpoints, proxy and certificates: what is taken from where, and what is refused."""

import os

import pytest

from dpo_operator.api import access as api
from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.job import hub_token, secrets
from dpo_trainer.sources import stores
from dpo_trainer.sources.access import from_environment

pytestmark = pytest.mark.unit

VARIABLES = [
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "HF_HUB_DISABLE_XET",
]


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Mount a Secret, as the kubelet does: links to a hidden folder."""
    for name in (*VARIABLES, *(name.lower() for name in VARIABLES if name.endswith("PROXY"))):
        monkeypatch.setenv(name, "")
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "secret"
    (folder / "..data").mkdir(parents=True)
    monkeypatch.setenv(names.ENV_CREDENTIALS_DIR, str(folder))
    monkeypatch.setenv(names.ENV_TOKEN_FILE, str(tmp_path / "none"))

    def mount(**keys):
        for name, value in keys.items():
            (folder / "..data" / name).write_text(value)
            (folder / name).symlink_to(f"..data/{name}")

    return mount


def access(**settings):
    return from_environment(api.Access.model_validate(settings))


def test_keys_are_read_and_kept_out_of_messages(mounted):
    mounted(
        AWS_ACCESS_KEY_ID="the-key-id\n",
        AWS_SECRET_ACCESS_KEY="the-secret\n",
        AZURE_STORAGE_ACCOUNT_NAME="accounts1",
        AZURE_TENANT_ID="x",
        HF_TOKEN="hf_x",
    )
    found = access(credentialsSecretRef={"name": "keys"})
    assert found.credentials["AWS_SECRET_ACCESS_KEY"] == "the-secret"
    assert (found.has("s3"), found.has("gs"), found.has("az"), found.has("hf")) == (True, False, False, True)
    assert hub_token() == "hf_x"
    assert sorted(secrets()) == ["hf_x", "the-key-id", "the-secret"]
    assert "the-secret" not in repr(found)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"password": "x"}, "found password"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "has AWS_ACCESS_KEY_ID and lacks AWS_SECRET_ACCESS_KEY"),
        ({"AZURE_CLIENT_SECRET": "x", "AZURE_CLIENT_ID": "y"}, "lacks AZURE_TENANT_ID"),
    ],
)
def test_a_secret_that_no_store_has_use_for_is_refused(mounted, keys, said):
    mounted(**keys)
    with pytest.raises(TrainerError, match=said) as failure:
        access(credentialsSecretRef={"name": "keys"})
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "spec.access.credentialsSecretRef (keys)" in str(failure.value)


def test_settings_reach_the_hubs_client(mounted, tmp_path, monkeypatch):
    bundle = tmp_path / "ca.crt"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    monkeypatch.setenv(names.ENV_CA_FILE, str(bundle))
    proxy = {"url": "http://proxy:3128", "exceptions": [".svc", "10.0.0.0/8"]}
    found = access(hub={"endpoint": "https://mirror.example"}, proxy=proxy, caBundleRef={"name": "ca"})
    found.apply(tmp_path / "work")
    assert os.environ["HF_ENDPOINT"] == "https://mirror.example"
    assert os.environ["HTTPS_PROXY"] == os.environ["https_proxy"] == "http://proxy:3128"
    assert os.environ["no_proxy"] == ".svc,10.0.0.0/8"
    trusted = (tmp_path / "work" / "ca.pem").read_text()
    assert os.environ["SSL_CERT_FILE"] == str(tmp_path / "work" / "ca.pem")
    assert "\nours\n" in trusted
    assert trusted.count("BEGIN CERTIFICATE") > 50


def test_certificates_that_are_not_there_or_none_are_told(mounted, tmp_path, monkeypatch):
    monkeypatch.setenv(names.ENV_CA_FILE, str(tmp_path / "ca.crt"))
    with pytest.raises(TrainerError, match="caBundleRef: root of ConfigMap ca is not at"):
        access(caBundleRef={"name": "ca", "key": "root"})
    (tmp_path / "ca.crt").write_text("hello")
    with pytest.raises(TrainerError, match="found no BEGIN CERTIFICATE"):
        access(caBundleRef={"name": "ca"})


@pytest.mark.parametrize(
    ("url", "keys", "environment", "signed"),
    [
        ("s3://b/k", {}, {}, False),
        ("s3://b/k", {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s"}, {}, True),
        ("s3://b/k", {}, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/f", "AWS_ROLE_ARN": "r"}, True),
        ("s3://b/k", {}, {names.ENV_IDENTITY: "1"}, True),
        ("gs://b/k", {}, {}, False),
        ("gs://b/k", {}, {names.ENV_IDENTITY: "1"}, True),
        ("az://c/k", {}, {}, False),
        ("az://c/k", {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}, {}, True),
        ("abfs://c/k", {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}, {}, True),
    ],
)
def test_requests_are_signed_only_with_an_identity(mounted, monkeypatch, tmp_path, url, keys, environment, signed):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    mounted(**keys)
    store = stores.open_store(url, access(azure={"account": "acc"}))
    # A store that skips signing has the setting; without it, it would ask the node for an identity.
    assert store.client.config.get("skip_signature") in ((None, False) if signed else (True, "true"))


def test_a_proxy_and_certificates_reach_the_stores_client(mounted, tmp_path, monkeypatch):
    found = access(
        s3={"endpoint": "http://minio:9000", "region": "eu-1"}, proxy={"url": "http://p:1", "exceptions": ["a", "b"]}
    )
    client = stores.open_store("s3://bucket/key", found).client
    options = dict(client.client_options)
    assert (options["proxy_url"], options["proxy_excludes"]) == ("http://p:1", "a,b")
    assert (client.config["endpoint"], client.config["region"]) == ("http://minio:9000", "eu-1")


def test_a_key_that_cannot_be_read_is_not_quoted(mounted):
    mounted(GOOGLE_APPLICATION_CREDENTIALS='{"private_key": "very secret"')
    with pytest.raises(TrainerError) as failure:
        stores.open_store("gs://bucket/key", access(credentialsSecretRef={"name": "k"}))
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert 'secret"' not in str(failure.value)
    assert failure.value.__cause__ is None


def test_an_account_that_is_not_named_is_told(mounted):
    with pytest.raises(TrainerError, match=r"spec\.access\.azure\.account"):
        stores.open_store("az://container/key", access())
