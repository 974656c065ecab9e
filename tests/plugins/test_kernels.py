"""Kernels of plugins are looked up by the functions that they replace."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from fusion_core import KernelSpec
from fusion_core.errors import BrokenPluginError, PluginError
from fusion_core.plugins.distributions import Plugin
from fusion_core.plugins.manager import PluginManager
from fusion_core.weights import (
    CompiledFunction,
    Cut,
    Linear,
    MergedSource,
    Operands,
    Piece,
    StateDictSource,
    TensorInfo,
    is_compiled,
)
from fusion_core.weights.merging.transforms import count_compiled

if TYPE_CHECKING:
    from pathlib import Path

_FUNCTION = "fusion_ties.ties:Ties.merge"
_LINEAR = "fusion_core.weights.merging.linear:Linear.merge"


class Fast(CompiledFunction):
    """A kernel that fits every tensor."""

    def fits(self, function: object, operands: Operands, info: TensorInfo) -> bool:
        return True

    def __call__(self, function: object, piece: Piece) -> None:
        raise NotImplementedError


def _manager(*distributions: str) -> PluginManager:
    manager = PluginManager()
    for name in distributions:
        plugin = Plugin(name, "1.0", f"{name}.plugin")
        plugin.components = [
            KernelSpec(
                name="fast",
                summary="",
                target=f"{name}:Fast",
                replaces=(_FUNCTION,),
                least_elements=1000,
            )
        ]
        manager.plugins.append(plugin)
    return manager


def test_a_kernel_is_known_by_the_function_that_it_replaces() -> None:
    assert _manager("one").kernels() == {_FUNCTION: ("one/fast", "one:Fast")}


def test_a_kernel_that_few_elements_do_not_pay_for_is_left_out() -> None:
    assert [len(_manager("one").kernels(elements)) for elements in (999, 1000)] == [0, 1]


def test_two_kernels_of_one_function_are_an_error() -> None:
    with pytest.raises(PluginError, match="one/fast and two/fast") as raised:
        _manager("one", "two").kernels()
    assert "--no-plugin" in str(raised.value.hint)


def test_a_kernel_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_KERNELS", "compiled")
    model = StateDictSource({"w": torch.ones(3)})
    kernels = {_LINEAR: ("one/fast", "no_such:Fast")}
    merge = MergedSource(Linear((1.0,)), Operands(model, {"a": model}, kernels=kernels))
    with pytest.raises(BrokenPluginError, match="no_such:Fast cannot be loaded: ModuleNotFound"):
        merge.tensor("w")


def test_a_method_that_another_package_inherits_has_no_kernel() -> None:
    class Mine(Linear):
        """It could override what `merge` calls."""

    model = StateDictSource({"w": torch.ones(3)})
    operands = Operands(model, {"a": model}, kernels={_LINEAR: ("one/fast", f"{__name__}:Fast")})
    assert count_compiled(MergedSource(Linear((1.0,)), operands)) == {"one/fast": 1}
    assert count_compiled(MergedSource(Mine((1.0,)), operands)) == {}


@pytest.mark.parametrize(("cut", "counts"), [(Cut.ELEMENT, {"one/fast": 1}), (Cut.TENSOR, {})])
def test_pieces_on_a_gpu_have_no_kernel(cut: Cut, counts: dict[str, int]) -> None:
    model = StateDictSource({"w": torch.ones(3, 2)})
    model.cut = cut  # elementwise work stays on the CPU
    kernels = {_LINEAR: ("one/fast", f"{__name__}:Fast")}
    operands = Operands(model, {"a": model}, device=torch.device("cuda"), kernels=kernels)
    merge = MergedSource(Linear((1.0,)), operands)
    assert count_compiled(merge) == counts
    assert is_compiled(merge.function, merge.piece("w", 0, 6)) == bool(counts)


#: A module that compiles for longer than any merge takes.
_SLOW = """
import threading
from pathlib import Path

from fusion_core.weights import CompiledFunction

class Slow(CompiledFunction):
    fits = __call__ = None

threading.main_thread().join()
Path("compiled").touch()
"""
_SHORT_MERGE = f"""
import torch
from fusion_core.weights import Linear, MergedSource, Operands, StateDictSource

model = StateDictSource({{"w": torch.ones(3)}})
kernels = {{"{_LINEAR}": ("one/slow", "slow:Slow")}}
merge = MergedSource(Linear((1.0,)), Operands(model, {{"a": model}}, kernels=kernels))
print(merge.tensor("w").tolist())
"""


def test_what_a_short_merge_began_to_compile_is_compiled_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(_SLOW)
    command = [sys.executable, "-c", _SHORT_MERGE]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "[1.0, 1.0, 1.0]\n"
    assert (tmp_path / "compiled").exists()
