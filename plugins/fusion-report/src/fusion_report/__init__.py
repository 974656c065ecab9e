"""Runs of fusion-core as one page, and what to expect of merges before any is made.

from fusion_report import diagnose

print(diagnose({"model_pool": "mini8"}).advice)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_report.diagnosis.diagnose import Diagnosis, Questions, diagnose

__all__ = ["Diagnosis", "Questions", "diagnose"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in __all__:
        raise AttributeError(f"module 'fusion_report' has no attribute {name!r}")
    from fusion_report.diagnosis import diagnose as home

    return getattr(home, name)
