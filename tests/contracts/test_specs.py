from __future__ import annotations

import dataclasses
import pickle

import pytest

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    CommandSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    TaskPoolSpec,
    load_target,
)


def _spec(**changes: object) -> ComponentSpec:
    values: dict[str, object] = {
        "name": "slerp",
        "summary": "",
        "target": "a.b:C",
        "config": "a.c:D",
        **changes,
    }
    return ComponentSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["slerp", "iso-c", "mini8", "clip-vit-b32", "0"])
def test_kebab_case_names_are_taken(name: str) -> None:
    assert _spec(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "Slerp", "iso_c", "-a", "a-", "a--b", "a b", "a/b", "a.b", "ä", "a\n"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="kebab-case"):
        _spec(name=name)
    with pytest.raises(ValueError, match="kebab-case"):
        _spec(aliases=(name,))


@pytest.mark.parametrize("target", ["", "a", "a:", ":b", "a.b", "a:b:c", "a:b.c", "a-b:c", "a b:c"])
def test_targets_are_module_and_attribute(target: str) -> None:
    with pytest.raises(ValueError, match="module:attribute"):
        _spec(target=target)
    with pytest.raises(ValueError, match="module:attribute"):
        _spec(config=target)


_COMPONENTS = (AlgorithmSpec, ModelPoolSpec, TaskPoolSpec, ExecutorSpec)
_AS = {"name": "a", "summary": "", "target": "a:B"}


@pytest.mark.parametrize(
    "spec",
    [
        *(kind(**_AS, config="a:C") for kind in _COMPONENTS),
        CommandSpec(**_AS, group="Reports"),
    ],
    ids=lambda spec: spec.kind,
)
def test_specs_are_frozen_hashable_and_picklable(spec: ComponentSpec) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "b"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(dataclasses.replace(spec))


def test_a_command_has_no_configuration() -> None:
    with pytest.raises(TypeError, match="config"):
        CommandSpec(**_AS, config="a:C")  # type: ignore[call-arg]


def test_a_target_is_imported_when_it_is_loaded() -> None:
    from collections import OrderedDict

    assert load_target("collections:OrderedDict") is OrderedDict
    with pytest.raises(AttributeError):
        load_target("collections:Nothing")
