"""Versions of this project and its libraries, for checkpoints and model cards."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "deepspeed", "transformers")


def library_versions() -> dict[str, str]:
    """Version of each library that affects numerical results, by distribution name."""
    return {name: version(name) for name in LIBRARIES}


def own_version() -> str:
    """This project's version; "source" without package metadata, as in the image."""
    try:
        return version("dpo-operator")
    except PackageNotFoundError:
        return "source"
