"""The cache that jobs share: real processes, a hub on loopback that counts, and what others may leave in the folder."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from tests import tied
from tests.filesystems import fill, set_writable, small_file_system
from tests.unit.trainer.hub_server import COMMIT, Hub, Repo, files_of, serving
from tests.unit.trainer.tiny import CHATML, tiny_model

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[4]
TAKEN = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DATA = "data/train.jsonl"
# One whose name with its folders is too long for a file's.
LONG = f"data/train-{'é' * 60}.jsonl"
HUB = ("huggingface_hub.hf_api",)
PREPARE = (*HUB, "dpo_trainer.prepare.phase", "datasets", "transformers.models.llama.tokenization_llama")


@dataclass
class Site:
    """A hub with one model and one dataset, a cache and a folder for the jobs."""

    hub: Hub
    worker: "subprocess.Popen[str]"
    folder: Path
    cache: Path
    files: dict[str, bytes]
    longest_wait: float = 600.0

    @property
    def kept(self) -> Path:
        """Where the cache keeps the model's files."""
        return self.cache / "models" / "org%2Ftiny" / COMMIT

    def start(self, mode: str, jobs: int = 1) -> None:
        """Let jobs begin together, at once."""
        shutil.rmtree(self.folder / "job-0", ignore_errors=True)
        order = [mode, jobs, str(self.cache), str(self.folder), self.longest_wait]
        self.worker.stdin.write(json.dumps(order) + "\n")
        self.worker.stdin.flush()

    def run(self, mode: str = "fetch", jobs: int = 1) -> list[dict[str, Any]]:
        """Results of jobs that began together."""
        self.start(mode, jobs)
        assert self.worker.stdout.readline() == "0\n"
        return [json.loads((self.folder / f"{number}.json").read_text()) for number in range(jobs)]

    def downloads(self) -> Counter[str]:
        """Times that each file was downloaded since the last call."""
        asked = [request.split(" ") for request in self.hub.requests]
        self.hub.requests.clear()
        return Counter(path.rpartition("/")[2] for method, path in asked if method == "GET" and "/resolve/" in path)

    def has_the_model(self, number: int = 0) -> bool:
        own = self.folder / f"job-{number}"
        return all((own / name).read_bytes() == self.files[name] for name in ("config.json", "model.safetensors"))


@contextmanager
def working(hub: Hub, home: Path, modules: tuple[str, ...] = PREPARE) -> Iterator["subprocess.Popen[str]"]:
    """The process that forks the jobs."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and not key.lower().endswith("_proxy")
    }
    clean |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    worker = tied.popen(
        [sys.executable, "-m", "tests.unit.trainer.cache_worker", *modules],
        cwd=ROOT,
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with worker:
        yield worker
        worker.stdin.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """One hub for all tests: a process that has loaded its library keeps the hub's address."""
    with serving({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def worker(hub, tmp_path_factory) -> Iterator["subprocess.Popen[str]"]:
    with working(hub, tmp_path_factory.mktemp("home")) as worker:
        yield worker


@pytest.fixture
def site(hub, worker, tmp_path) -> Site:
    files = files_of(tiny_model(tmp_path / "tiny", template=CHATML))
    (tmp_path / "cache").mkdir()
    (tmp_path / "jobs").mkdir()
    rows = [{"prompt": f"Q{i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "jobs" / "pairs.jsonl").write_text(lines)
    data = {DATA: lines.encode(), LONG: lines.encode(), "README.md": b"# pairs\n"}
    hub.repos = {"models/org/tiny": Repo(files), "datasets/org/pairs": Repo(data)}
    hub.slow = 0.0
    hub.requests.clear()
    return Site(hub, worker, tmp_path / "jobs", tmp_path / "cache", files)


def test_jobs_at_once_download_each_file_once(site):
    site.hub.slow = 1.0
    results = site.run("prepare", 5)
    assert [(found["code"], found["message"], found["warnings"]) for found in results] == [(0, "", [])] * 5
    assert site.downloads() == dict.fromkeys(TAKEN, 1)
    assert any("waiting for another job" in " ".join(found["activities"]) for found in results)
    for number in range(5):
        model = site.folder / f"job-{number}" / "model"
        assert sorted(path.name for path in model.iterdir()) == sorted(TAKEN)
        for name in TAKEN:
            assert (model / name).read_bytes() == site.files[name]
            assert not os.path.samefile(model / name, site.kept / name)
            assert (model / name).stat().st_nlink == 1


def test_data_are_downloaded_once_and_again_after_damage(site):
    site.hub.slow = 1.0
    assert [found["warnings"] for found in site.run("prepare-hub", 3)] == [[]] * 3
    downloads = site.downloads()
    # The library that reads datasets asks each time whether the description changed.
    del downloads["README.md"]
    assert downloads == dict.fromkeys((*TAKEN, *(name.rpartition("/")[2] for name in (DATA, LONG))), 1)
    for number in range(3):
        prepared = json.loads((site.folder / f"job-{number}" / "prepared.json").read_text())
        assert (prepared["report"]["train_pairs"], prepared["inputs"]["train"]["commit"]) == (8, COMMIT)
    site.hub.slow = 0.0
    kept = site.cache / "datasets" / "org%2Fpairs" / COMMIT / "data%2Ftrain.jsonl"
    right = kept.read_bytes()
    kept.write_bytes(right.replace(b"yes", b"bad"))
    (found,) = site.run("prepare-hub")
    assert f"the cache's {DATA} of org/pairs is not the hub's file" in found["warnings"][0]
    assert site.downloads()[DATA.rpartition("/")[2]] == 1
    assert kept.read_bytes() == right
    assert found["code"] == 0


def test_a_job_copies_its_files_from_the_cache(site):
    site.run()
    assert site.downloads() == {"config.json": 1, "model.safetensors": 1}
    assert site.run() == [
        {"code": 0, "message": "", "warnings": [], "activities": ["fetching the model's files"] * 2},
    ]
    assert site.downloads() == {}
    for name in ("config.json", "model.safetensors"):
        (site.kept / name).write_bytes(b"changed later")
    assert site.has_the_model()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("length", ["the same", "shorter"])
def test_a_damaged_cached_file_is_downloaded_again(site, name, length):
    """SHA-256 for the weights, git's SHA-1 for a file that is in the repository itself."""
    site.run()
    site.downloads()
    content = bytearray(site.files[name])
    content[-3] ^= 1
    (site.kept / name).write_bytes(content if length == "the same" else content[:-1])
    (found,) = site.run()
    assert site.has_the_model()
    assert site.downloads() == {name: 1}
    (warning,) = found["warnings"]
    assert f"the cache's {name} of org/tiny is not the hub's file" in warning
    assert (site.kept / name).read_bytes() == site.files[name]
    assert site.run()[0]["warnings"] == []
    assert site.downloads() == {}


def test_a_link_instead_of_a_file_is_not_followed(site):
    site.run()
    site.downloads()
    # Even to the right content: another could change it after it was checked, or it could be a file of the pod.
    elsewhere = site.folder / "elsewhere"
    shutil.copy(site.kept / "model.safetensors", elsewhere)
    (site.kept / "model.safetensors").unlink()
    (site.kept / "model.safetensors").symlink_to(elsewhere)
    (found,) = site.run()
    assert "symbolic link" in found["warnings"][0]
    assert site.downloads() == {"model.safetensors": 1}
    assert site.has_the_model()
    assert not (site.kept / "model.safetensors").is_symlink()
    assert elsewhere.read_bytes() == site.files["model.safetensors"]


def test_a_pipe_instead_of_a_file_does_not_block_the_job(site):
    site.run()
    (site.kept / "config.json").unlink()
    os.mkfifo(site.kept / "config.json")
    assert "it is no file" in site.run()[0]["warnings"][0]
    assert site.has_the_model()


@pytest.mark.parametrize("place", ["models", "models/org%2Ftiny", f"models/org%2Ftiny/{COMMIT}"])
def test_a_folder_that_is_a_link_is_not_written_through(site, place):
    outside = site.folder / "outside"
    outside.mkdir()
    link = site.cache / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    (found,) = site.run()
    assert "can't be used" in found["warnings"][0]
    assert list(outside.iterdir()) == []
    assert site.has_the_model()


@pytest.mark.parametrize("name", [".model.safetensors.lock", ".model.safetensors.partial"])
def test_links_instead_of_written_files_are_not_followed(site, name):
    victim = site.folder / "victim"
    victim.write_bytes(b"mine")
    site.kept.mkdir(parents=True)
    (site.kept / name).symlink_to(victim)
    (found,) = site.run()
    assert site.has_the_model()
    assert victim.read_bytes() == b"mine"
    assert bool(found["warnings"]) == name.endswith("lock")


def test_a_cache_that_can_not_be_written_to_is_still_read(site, tmp_path):
    (tmp_path / "disk").mkdir()
    with small_file_system(tmp_path / "disk", 16) as mounted:
        site.cache = mounted
        site.run()
        (site.kept / "config.json").unlink()
        site.downloads()
        set_writable(mounted, False)
        (found,) = site.run()
        assert site.downloads() == {"config.json": 1}
        assert site.has_the_model()
        assert (found["code"], len(found["warnings"])) == (0, 1)
        assert "Read-only file system" in found["warnings"][0]


def test_a_full_cache_is_only_a_warning(site, tmp_path):
    (tmp_path / "disk").mkdir()
    with small_file_system(tmp_path / "disk", 16) as mounted:
        site.cache = mounted
        site.kept.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (site.kept / f".{name}.lock").touch()
        fill(mounted)
        (found,) = site.run()
        assert site.has_the_model()
        assert (found["code"], len(found["warnings"])) == (0, 1)
        assert "No space left on device" in found["warnings"][0]
        assert not (site.kept / "model.safetensors").exists()


def test_a_missing_cache_folder_is_only_a_warning(site):
    site.cache.rmdir()
    (found,) = site.run()
    assert site.has_the_model()
    assert len(found["warnings"]) == 1


def test_a_job_that_is_killed_leaves_no_lock_and_no_half_file(site, tmp_path):
    site.hub.slow = 60.0
    with working(site.hub, tmp_path / "home", HUB) as worker:
        replace(site, worker=worker).start("fetch")
        until = time.monotonic() + 60
        while not site.downloads() and time.monotonic() < until:
            time.sleep(0.05)
        assert (site.kept / ".config.json.lock").exists()
        os.killpg(worker.pid, signal.SIGKILL)  # a session of its own: the worker and the job that it forked
    assert not (site.kept / "config.json").exists()
    # As if it had been killed later, while it copied the file to the cache.
    (site.kept / ".config.json.partial").write_bytes(site.files["config.json"][:10])
    site.hub.slow = 0.0
    (found,) = site.run()
    assert (found["code"], found["warnings"]) == (0, [])
    assert site.has_the_model()
    assert (site.kept / "config.json").read_bytes() == site.files["config.json"]
    assert not (site.kept / ".config.json.partial").exists()


def test_a_lock_that_is_never_released_does_not_block_the_job(site):
    site.run()
    (site.kept / "config.json").unlink()
    site.downloads()
    site.longest_wait = 1.0
    with (site.kept / ".config.json.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = site.run()
    assert site.has_the_model()
    assert site.downloads() == {"config.json": 1}
    assert "is locked by another" in found["warnings"][0]
    assert any("waiting for another job" in text for text in found["activities"])
    assert not (site.kept / "config.json").exists()


def test_downloads_are_checked_before_they_enter_the_cache(site):
    """A hub, or a proxy before it, whose files are not those of its listing."""
    wrong = dict(site.files)
    wrong["config.json"] = site.files["config.json"].replace(b"4096", b"4097")
    assert wrong["config.json"] != site.files["config.json"]
    site.hub.repos["models/org/tiny"].sent = wrong
    (found,) = site.run()
    assert found["code"] == ExitCode.SOURCE_UNAVAILABLE
    assert "the download of config.json has not the hub's digest" in found["message"]
    assert not (site.kept / "config.json").exists()
    site.hub.repos["models/org/tiny"].sent = None
    assert site.run()[0]["code"] == 0
    assert site.has_the_model()
