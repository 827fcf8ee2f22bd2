"""Versions of the code that made something, for checkpoints and model cards."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "deepspeed", "transformers")


def library_versions() -> dict[str, str]:
    """Distribution name -> version of what decides the numbers."""
    return {name: version(name) for name in LIBRARIES}


def own_version() -> str:
    """This project's version. An image holds the bare code without a distribution's metadata: then "source"."""
    try:
        return version("dpo-operator")
    except PackageNotFoundError:
        return "source"
