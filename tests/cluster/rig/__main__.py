"""`python -m tests.cluster.rig COMMAND`: a cluster for development, and the parts of one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from tests.cluster.rig import binaries, images, packages, remains
from tests.cluster.rig import volumes as volume_pool
from tests.cluster.rig.cluster import Cluster, Shape
from tests.cluster.rig.fixture import running
from tests.cluster.rig.layout import DEFAULT_NAME, Layout
from tests.cluster.rig.shell import RigError, say
from tests.cluster.rig.usage import in_use

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Name = Annotated[str, typer.Option(help="The cluster's name; clusters with different names do not meet.")]


@app.command()
def up(
    name: Name = DEFAULT_NAME,
    gpus: Annotated[str, typer.Option(help="GPUs of each node, the first node first; 0 makes a CPU node.")] = "0,1,1",
    images: Annotated[bool, typer.Option(help="Build and load the operator's and the trainer's images.")] = True,
    audit: Annotated[bool, typer.Option(help="Write the API server's audit log.")] = False,
    fresh: Annotated[bool, typer.Option(help="Boot anew, even if the cluster is running.")] = False,
) -> None:
    """Boot a cluster, or bring a running one's images up to date; prints the export line for kubectl."""
    build(images=images)
    with in_use(name) as use:
        cluster = None if fresh else running(name)
        if cluster:
            say(f"cluster {name} is running already")
            if images:
                cluster.load_images()
        else:
            shape = Shape(gpus=tuple(int(count) for count in gpus.split(",")), images=images, audit=audit)
            cluster = Cluster.boot(use, shape)
        use.leave_running()
    print(f"export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(name: Name = DEFAULT_NAME) -> None:
    """End a cluster's processes and delete its state; does nothing when there is none."""
    with in_use(name):
        remains.remove(name)


@app.command()
def status(name: Name = DEFAULT_NAME) -> None:
    """Show the cluster's processes and nodes."""
    cluster = Cluster.open(name)
    print(cluster.report())
    print(cluster.kubectl("get", "nodes", "-o", "wide"))


@app.command()
def kubeconfig(name: Name = DEFAULT_NAME) -> None:
    """Print the export line for kubectl."""
    Cluster.open(name)
    print(f"export KUBECONFIG={Layout.of(name).kubeconfig}")


@app.command()
def volumes(name: Name = DEFAULT_NAME, count: int = 12, size: str = volume_pool.SIZE) -> None:
    """Refill the pool of volumes that can be claimed."""
    Cluster.open(name).refill_volumes(count, size)


@app.command("images")
def build_images() -> None:
    """Build the images that have changed, without giving them to a cluster."""
    packages.ensure()
    for image in images.ensure():
        print(f"{image.name}  {image.image_id[:12]}  {len(image.layers)} layers")


@app.command()
def build(
    images: Annotated[bool, typer.Option(help="Also build the images.")] = True,
) -> None:
    """Make everything that a cluster needs and that is missing: packages, binaries, images."""
    packages.ensure()
    # Compiling is bound by the CPU and an image build by the network, so they share the time.
    with ThreadPoolExecutor(2) as workers:
        parts = [workers.submit(binaries.ensure_all)]
        if images:
            parts.append(workers.submit(ensure_images))
        for part in parts:
            part.result()


def ensure_images() -> None:
    images.ensure()


if __name__ == "__main__":
    try:
        app()
    except RigError as error:
        say(f"error: {error}")
        sys.exit(1)
