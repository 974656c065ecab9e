"""Packages of fusion-core 0.1 that another distribution provides now.

Each leaves a module of its old name behind, which raises `moved_error(__name__)`.
"""

#: The distribution that provides a package now, by the package's name in 0.1.
MOVED = {
    "fusion_core.adapting": "fusion-adapting",
    "fusion_core.testing": "fusion-testing",
}


def moved_error(module: str) -> ImportError:
    """Return the error for an import of a package by its name in 0.1."""
    distribution = MOVED[module]
    package = distribution.replace("-", "_")
    return ImportError(
        f"{module} moved to the distribution {distribution}: pip install {distribution}, "
        f"and import {package}",
        name=module,
    )
