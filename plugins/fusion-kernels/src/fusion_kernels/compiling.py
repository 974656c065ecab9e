"""Compile loops into object code: Python by numba, then as one whole by LLVM.

This is the only module that needs numba. Only a machine's first merge imports it.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES = {int: types.int64, float: types.float32}
#: The types of parameters, as the modules `struct` and `array` name them.
_CODES = {int: "q", float: "f"}
_WRAPPER = "cfunc."


def compile_loop(module: str, name: str, target: llvm.TargetMachine) -> tuple[str, bytes]:
    """Return the types of a loop's parameters and its object code, with the symbol `name`.

    A loop returns `int`. Its parameters are annotated by `int` or `float`. The code calls nothing
    of Python's or numba's: it runs without either.
    """
    function = getattr(import_module(f"fusion_kernels.loops.{module}"), name)
    *parameters, result = inspect.get_annotations(function, eval_str=True).values()
    signature = _TYPES[result](*(_TYPES[parameter] for parameter in parameters))
    with _without_optimisation():
        wrapped = numba.cfunc(signature, error_model="numpy")(function)
    code = _link(llvm.parse_assembly(wrapped.inspect_llvm()), name, target)
    return "".join(_CODES[parameter] for parameter in parameters), target.emit_object(code)


@contextmanager
def _without_optimisation() -> Iterator[None]:
    """Have numba translate without optimising: LLVM makes better code of a whole loop at once."""
    cpu_target.target_context.codegen()  # made once, by the level of the process
    with global_compiler_lock:
        config: Any = numba.config  # its variables have no annotations
        level = config.OPT
        config.OPT = type(level)(0)
        try:
            yield
        finally:
            config.OPT = level


def _link(code: llvm.ModuleRef, name: str, target: llvm.TargetMachine) -> llvm.ModuleRef:
    """Export nothing but the loop, so that LLVM removes numba's handling of exceptions."""
    for value in (*code.functions, *code.global_variables):
        if value.name.startswith(_WRAPPER):
            value.name = name
        elif not value.is_declaration:
            value.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(code, builder)
    needs = [value.name for value in code.functions if value.is_declaration]
    if any(not needed.startswith("llvm.") for needed in needs):
        raise RuntimeError(f"the loop {name} calls functions outside of it: {needs}")
    return code
