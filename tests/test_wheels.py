"""What the built wheels hold; `skeleton` and `test_third_party` install and use them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.plugins

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"fusion-core": ROOT, **{path.name: path for path in ROOT.glob("plugins/*")}}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_package_and_nothing_else(our_wheels: list[Path], name: str) -> None:
    package = name.replace("-", "_")
    (wheel,) = (our_wheel for our_wheel in our_wheels if our_wheel.name.startswith(f"{package}-"))
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (file for file in files if file.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    tops = {file.split("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {package}
    assert f"{package}/py.typed" in files
    assert any(file.endswith("/licenses/LICENSE") for file in files)
    assert not [file for file in files if "test" in file.split("/")]
    (home,) = PACKAGES[name].glob(f"src/{package}") if name != "fusion-core" else [ROOT / package]
    modules = {f"{package}/{path.relative_to(home).as_posix()}" for path in home.rglob("*.py")}
    assert modules <= set(files)
    assert "License-Expression: Apache-2.0" in text
