"""The versions that worker processes compare name plugins and the libraries they require."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.machine.versions import versions

if TYPE_CHECKING:
    from conftest import Site


def test_versions_include_the_libraries_of_plugins(site: Site) -> None:
    core = "fusion-core>=0.1"
    site.install("wave-tools", "", version="0.2", requires=(core,), entry_points={})
    site.install("wave-method", "", version="0.7", requires=(core, "wave_tools>=0.1", "pluggy"))
    site.install("wave-unused", "", requires=(core,), entry_points={})
    installed = versions.__wrapped__()
    assert {name: installed[name] for name in installed if name.startswith("wave")} == {
        "wave-method": "0.7",
        "wave-tools": "0.2",
    }
    assert {"fusion-core", "python", "torch"} <= installed.keys()
    assert "pluggy" not in installed
