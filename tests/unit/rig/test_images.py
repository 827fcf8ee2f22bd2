import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster.rig import builder, inputs
from tests.cluster.rig.images import MARKER, Image, archive_of, digest, link_layers

pytestmark = pytest.mark.unit

DOCKERFILE = """\
FROM base AS one
COPY --chown=1:1 requirements/a.txt requirements/b.txt /requirements/
RUN echo COPY
FROM base
COPY --from=one /opt/venv /opt/venv
COPY code \\
     /opt/code
"""


@pytest.fixture
def context(tmp_path):
    for name in ("requirements/a.txt", "requirements/b.txt", "code/main.py", "other/ignored.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def test_what_a_dockerfile_copies_from_its_context():
    assert inputs.copied(DOCKERFILE) == ["requirements/a.txt", "requirements/b.txt", "code"]


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ("code/main.py", True),
        ("code/new.py", True),
        ("requirements/b.txt", True),
        ("other/ignored.py", False),
        ("code/__pycache__/main.pyc", False),
    ],
)
def test_only_inputs_change_the_key(context, change, matters):
    before = inputs.digest(context, context / "Dockerfile")
    (context / change).parent.mkdir(exist_ok=True)
    (context / change).write_text("changed")
    assert (inputs.digest(context, context / "Dockerfile") != before) is matters


def test_arguments_change_the_key(context):
    dockerfile = context / "Dockerfile"
    assert inputs.digest(context, dockerfile, "one") != inputs.digest(context, dockerfile, "other")


def test_names_without_a_host_are_completed_as_kubernetes_does():
    assert Image("dpo-trainer:dev", "", (), {}).full_name == "docker.io/library/dpo-trainer:dev"
    assert Image("localhost/pause:3", "", (), {}).full_name == "localhost/pause:3"


def test_an_archive_is_consistent_and_names_the_layers_folders():
    layers = (Path("/storage/low"), Path("/storage/high"))
    data = archive_of(Image("a:1", "id", layers, {"User": "65532"}), "localhost/a:1")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        blobs = {member.name: archive.extractfile(member).read() for member in archive}

    def blob(descriptor):
        content = blobs["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
        assert len(content) == descriptor["size"]
        assert digest(content) == descriptor["digest"]
        return content

    [entry] = json.loads(blobs["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/a:1"
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["config"] == {"User": "65532"}
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    for layer, path in zip(manifest["layers"], layers, strict=True):
        with tarfile.open(fileobj=io.BytesIO(blob(layer))) as archive:
            assert archive.extractfile(MARKER).read() == str(path).encode()


def test_archives_of_the_same_layers_are_equal():
    image = Image("a:1", "id", (Path("/l"),), {})
    assert archive_of(image, "a:1") == archive_of(image, "a:1")


def test_unpacked_layers_become_links_once(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_text("content")
    unpacked = tmp_path / "snapshots" / "1" / "fs"
    unpacked.mkdir(parents=True)
    (unpacked / MARKER).write_text(str(real))
    untouched = tmp_path / "snapshots" / "2" / "fs"
    untouched.mkdir(parents=True)
    for _ in range(2):
        link_layers(tmp_path / "snapshots")
        assert unpacked.is_symlink()
        assert (unpacked / "file").read_text() == "content"
        assert not untouched.is_symlink()


def test_installer_settings_become_files():
    settings = {"PIP_INDEX_URL": "https://index/simple", "PIP_CERT": "/ca", "PIP_FIND_LINKS": "/w /v"}
    assert builder.pip_configuration(settings).splitlines() == [
        "[global]",
        "cert = /ca",
        "find-links = /w /v",
        "index-url = https://index/simple",
    ]
    uv = builder.uv_configuration(settings)
    assert 'index-url = "https://index/simple"' in uv
    assert 'find-links = ["/w", "/v"]' in uv
    assert "elsewhere" in builder.uv_configuration(settings | {"UV_INDEX_URL": "https://elsewhere"})
