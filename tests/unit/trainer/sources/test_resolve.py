"""What a source string means, and what the errors of hubs and stores say."""

import errno
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from huggingface_hub import errors as hub_errors

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, bad_dataset
from dpo_trainer.sources import resolve
from dpo_trainer.sources.resolve import FileSource, HubSource
from dpo_trainer.sources.retrying import ATTEMPTS, explain, retrying

pytestmark = pytest.mark.unit

http = sys.modules[hub_errors.HTTPError.__module__.split(".")[0]]  # httpx or httpx2, as huggingface_hub uses


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with some files, and claims beside it."""
    here = tmp_path / "here"
    (here / "sft" / "model").mkdir(parents=True)
    (here / "sft" / "model" / "config.json").write_text("{}")
    (here / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "claims" / "data" / "sub").mkdir(parents=True)
    (tmp_path / "claims" / "data" / "sub" / "a.jsonl").write_text("{}\n")
    (tmp_path / "secret.jsonl").write_text("{}\n")
    monkeypatch.chdir(here)
    return tmp_path


def at(place: Path, source: str):
    return resolve(source, "v1", claims=place / "claims")


def fails(place: Path, source: str, code: ExitCode) -> str:
    with pytest.raises(TrainerError) as failure:
        at(place, source)
    assert failure.value.exit_code == code
    return str(failure.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "gpt2", "trl-lib/ultrafeedback_binarized"])
def test_hub_ids(place, name):
    assert at(place, name) == HubSource(name, "v1")


@pytest.mark.parametrize("name", ["pairs.jsonl", "./pairs.jsonl", "../here/pairs.jsonl"])
def test_files(place, name):
    found = at(place, name)
    assert isinstance(found, FileSource)
    assert (found.is_file, dict(found.sizes), found.kind) == (True, {"pairs.jsonl": 3}, "path")
    with found.open("pairs.jsonl") as file:
        assert file.read() == b"{}\n"


def test_a_folder_that_exists_wins_over_a_hub_id(place):
    found = at(place, "sft/model")
    assert isinstance(found, FileSource)
    assert (found.is_file, dict(found.sizes)) == (False, {"config.json": 2})


@pytest.mark.parametrize("name", ["./sft/none", "/does/not/exist", "none.jsonl", "a/b/c", "data/train.json.gz"])
def test_paths_that_do_not_exist(place, name):
    assert name in fails(place, name, ExitCode.INPUT_NOT_FOUND)


def test_other_schemes_are_named(place):
    assert "found ftp://" in fails(place, "ftp://host/x", ExitCode.INVALID_CONFIGURATION)


def test_a_file_on_a_claim(place):
    found = at(place, "pvc://data/sub/a.jsonl")
    assert (found.kind, found.is_file, Path(found.root).name) == ("claim", True, "a.jsonl")
    assert list(at(place, "pvc://data").sizes) == list(at(place, "pvc://data/").sizes) == ["sub/a.jsonl"]


@pytest.mark.parametrize(
    "name",
    ["pvc://data/../../secret.jsonl", "pvc://data/sub/..", "pvc:///etc", "pvc://../secret.jsonl", "pvc://Data/x"],
)
def test_paths_cannot_leave_a_claim(place, name):
    fails(place, name, ExitCode.INVALID_CONFIGURATION)


@pytest.mark.parametrize("name", ["pvc://other/x", "pvc://data/none.jsonl"])
def test_a_missing_claim_or_file_is_named(place, name):
    fails(place, name, ExitCode.INPUT_NOT_FOUND)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret.jsonl", "../.."])
def test_symbolic_links_do_not_lead_out_of_a_claim(place, target):
    link = place / "claims" / "data" / "sub" / "link.jsonl"
    link.symlink_to(target)
    assert "leads out of the claim" in fails(place, "pvc://data/sub/link.jsonl", ExitCode.INVALID_CONFIGURATION)
    if (link.parent / target).is_file():
        assert "leads out of the claim" in fails(place, "pvc://data/sub", ExitCode.INVALID_CONFIGURATION)


def test_a_link_to_a_folder_outside_the_claim_is_refused(place):
    (place / "claims" / "data" / "out").symlink_to(place)
    assert "leads out of the claim" in fails(place, "pvc://data/out/secret.jsonl", ExitCode.INVALID_CONFIGURATION)
    assert list(at(place, "pvc://data").sizes) == ["sub/a.jsonl"]


def test_symbolic_links_inside_a_claim_are_followed(place):
    (place / "claims" / "data" / "link.jsonl").symlink_to("sub/a.jsonl")
    assert at(place, "pvc://data/link.jsonl").sizes == {"link.jsonl": 3}


def replaced_by_link(file: Path, secret: Path) -> None:
    file.symlink_to(secret)


def replaced_by_magic_link(file: Path, _: Path) -> None:
    file.symlink_to("/proc/self/environ")


def replaced_by_pipe(file: Path, _: Path) -> None:
    os.mkfifo(file)


def replaced_by_folder(file: Path, _: Path) -> None:
    file.mkdir()


def replaced_by_socket(file: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(file))


def replaced_by_more(file: Path, _: Path) -> None:
    file.write_text("{}\n{}\n")


def replaced_by_nothing(file: Path, _: Path) -> None:
    return


@pytest.mark.parametrize(
    ("replace", "code", "match"),
    [
        (replaced_by_link, ExitCode.INVALID_CONFIGURATION, r"a\.jsonl is a symbolic link that leads out"),
        (replaced_by_magic_link, ExitCode.INVALID_CONFIGURATION, r"a\.jsonl is a symbolic link that leads out"),
        (replaced_by_pipe, ExitCode.INVALID_CONFIGURATION, r"a\.jsonl is not a regular file"),
        (replaced_by_folder, ExitCode.INVALID_CONFIGURATION, r"a\.jsonl is not a regular file"),
        (replaced_by_socket, ExitCode.INVALID_CONFIGURATION, r"a\.jsonl is not a regular file"),
        (replaced_by_more, ExitCode.SOURCE_UNAVAILABLE, r"a\.jsonl has 6 bytes by now, 3 when it was listed"),
        (replaced_by_nothing, ExitCode.SOURCE_UNAVAILABLE, r"a\.jsonl is gone"),
    ],
)
@pytest.mark.parametrize("name", ["pvc://data/sub", "pvc://data/sub/a.jsonl"])
def test_what_replaces_a_file_after_it_was_listed(place, name, replace, code, match):
    found = at(place, name)
    file = place / "claims" / "data" / "sub" / "a.jsonl"
    file.unlink()
    replace(file, place / "secret.jsonl")
    with pytest.raises(TrainerError, match=match) as failure:
        found.open("a.jsonl")
    assert failure.value.exit_code == code


def test_a_link_that_replaces_a_folder_is_not_followed_out(place):
    found = at(place, "pvc://data")
    folder = place / "claims" / "data" / "sub"
    folder.rename(place / "kept")
    folder.symlink_to(place / "kept")
    with pytest.raises(TrainerError, match="leads out"):
        found.open("sub/a.jsonl")


@pytest.mark.parametrize("source", ["pvc://data/snapshots/1", "../claims/data/snapshots/1"])
def test_the_layout_of_a_hub_cache(place, source):
    data = place / "claims" / "data"
    (data / "blobs").mkdir()
    (data / "blobs" / "abc").write_text("{}")
    (data / "snapshots" / "1").mkdir(parents=True)
    (data / "snapshots" / "1" / "config.json").symlink_to("../../blobs/abc")
    with at(place, source).open("config.json") as file:
        assert file.read() == b"{}"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("hf://org/name", HubSource("org/name", "v1")),
        ("hf://datasets/org/name", HubSource("org/name", "v1")),
        ("hf://datasets/org/name/", HubSource("org/name", "v1")),
    ],
)
def test_urls_of_a_hub(place, url, found):
    assert at(place, url) == found
    pinned = url.rstrip("/") + "@main"
    assert resolve(pinned, claims=place) == HubSource("org/name", "main")
    assert "leave one out" in fails(place, pinned, ExitCode.INVALID_CONFIGURATION)


@pytest.mark.parametrize(
    "url", ["hf://name", "hf://org/name/sub", "hf://spaces/org/name", "hf://", "hf://datasets/name"]
)
def test_urls_of_a_hub_that_name_no_repository(place, url):
    assert "hf://" in fails(place, url, ExitCode.INVALID_CONFIGURATION)


def hub_error(kind: type, status: int) -> Exception:
    response = http.Response(status, request=http.Request("GET", "https://hub.example/api/models/org/name"))
    return kind("message", response=response)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (hub_error(hub_errors.GatedRepoError, 403), ExitCode.ACCESS_DENIED, "accept its terms"),
        (hub_error(hub_errors.RepositoryNotFoundError, 401), ExitCode.ACCESS_DENIED, "tokenSecretRef"),
        (hub_error(hub_errors.HfHubHTTPError, 403), ExitCode.ACCESS_DENIED, "HTTP 403"),
        (hub_error(hub_errors.RepositoryNotFoundError, 404), ExitCode.INPUT_NOT_FOUND, "check the name"),
        (hub_error(hub_errors.RevisionNotFoundError, 404), ExitCode.INPUT_NOT_FOUND, "no such revision"),
        (hub_error(hub_errors.RemoteEntryNotFoundError, 404), ExitCode.INPUT_NOT_FOUND, "not found"),
        (hub_error(hub_errors.HfHubHTTPError, 429), ExitCode.SOURCE_UNAVAILABLE, "HTTP 429"),
        (hub_error(hub_errors.HfHubHTTPError, 503), ExitCode.SOURCE_UNAVAILABLE, "HTTP 503"),
        (hub_errors.OfflineModeIsEnabled("offline"), ExitCode.SOURCE_UNAVAILABLE, "HF_HUB_OFFLINE"),
        (hub_errors.LocalEntryNotFoundError("no network"), ExitCode.SOURCE_UNAVAILABLE, "try later"),
        (hub_errors.HFValidationError("bad id"), ExitCode.INVALID_CONFIGURATION, "org/name"),
        (http.ConnectTimeout("slow"), ExitCode.SOURCE_UNAVAILABLE, "ConnectTimeout"),
        (ConnectionResetError(), ExitCode.SOURCE_UNAVAILABLE, "try later"),
        (FileNotFoundError("no such file"), ExitCode.INPUT_NOT_FOUND, "not found"),
        (bad_dataset("as it was"), ExitCode.BAD_DATASET, "as it was"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)  # fmt: skip
def test_errors_say_what_to_do(error, code, expected):
    found = explain(error, "org/name")
    assert found is not None
    assert found.exit_code == code
    assert expected in str(found)


def test_a_wrapped_error_is_found():
    outer, middle = ValueError("outer"), RuntimeError("middle")
    outer.__context__, middle.__cause__ = middle, hub_error(hub_errors.GatedRepoError, 403)
    assert explain(outer, "x").exit_code == ExitCode.ACCESS_DENIED


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        OSError(errno.ENOSPC, "No space left"),
        PermissionError(errno.EACCES, "denied", "/work/model"),
    ],
    ids=["bug", "full volume", "own file"],
)
def test_errors_of_other_kinds_are_not_explained(error):
    assert explain(error, "x") is None


def test_an_unreachable_source_is_retried(monkeypatch):
    monkeypatch.setattr("dpo_trainer.sources.retrying.FIRST_WAIT_SECONDS", 0.001)
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError
        return "done"

    assert retrying(flaky, "x") == "done"
    assert len(calls) == 3
    with pytest.raises(TrainerError) as failure:
        retrying(lambda: calls.append(1) or (_ for _ in ()).throw(TimeoutError()), "x")
    assert failure.value.exit_code == ExitCode.SOURCE_UNAVAILABLE
    assert len(calls) == 3 + ATTEMPTS


def test_a_refusal_is_not_retried():
    calls = []
    refusal = hub_error(hub_errors.HfHubHTTPError, 403)
    with pytest.raises(TrainerError):
        retrying(lambda: calls.append(1) or (_ for _ in ()).throw(refusal), "x")
    assert len(calls) == 1


def test_a_pipe_is_refused_as_a_source(place):
    os.mkfifo(place / "here" / "pipe.jsonl")
    assert "found a device, pipe" in fails(place, "./pipe.jsonl", ExitCode.INPUT_NOT_FOUND)


@pytest.mark.parametrize("mode", [0o000, 0o711])
def test_an_unreadable_file_is_named(mode):
    """Root may read everything, so where the tests run as root this test continues as another user."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others from the top
        folder = Path(name) / "data"
        folder.mkdir()
        (folder / "a.jsonl").write_text("{}\n")
        (folder / "a.jsonl").chmod(0)
        folder.chmod(mode)
        Path(name).chmod(0o711)
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            with pytest.raises(TrainerError, match=rf"a\.jsonl may not be read by user {os.geteuid()}") as failure:
                resolve(str(folder / "a.jsonl"), claims=folder).open("a.jsonl")
            with pytest.raises(TrainerError, match="data may not be read") as other:
                resolve(str(folder), claims=folder)
        finally:
            os.seteuid(os.getuid())
            folder.chmod(0o700)
    assert failure.value.exit_code == other.value.exit_code == ExitCode.ACCESS_DENIED


def test_names_that_no_file_can_have(place):
    fails(place, "x" * 300 + "/y/z", ExitCode.INPUT_NOT_FOUND)


def test_a_link_to_itself_on_a_claim(place):
    (place / "claims" / "data" / "loop.jsonl").symlink_to("loop.jsonl")
    fails(place, "pvc://data/loop.jsonl", ExitCode.INPUT_NOT_FOUND)
    assert list(at(place, "pvc://data").sizes) == ["sub/a.jsonl"]
