"""Report, compare and plot runs of fusion-core, and predict which merges will work.

from fusion_core import run_fusion
from fusion_report import diagnose, plot

print(diagnose({"model_pool": "mini8"}).advice)
plot(run_fusion(model_pool="mini8", task_pool="mini8", algorithm="ties", output=None))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_report.diagnosis.diagnose import Diagnosis, Questions, diagnose
    from fusion_report.frames import to_dataframe
    from fusion_report.plots import new_figure, plot
    from fusion_report.reading import read_report

_MODULES = {
    "Diagnosis": "fusion_report.diagnosis.diagnose",
    "Questions": "fusion_report.diagnosis.diagnose",
    "diagnose": "fusion_report.diagnosis.diagnose",
    "new_figure": "fusion_report.plots",
    "plot": "fusion_report.plots",
    "read_report": "fusion_report.reading",
    "to_dataframe": "fusion_report.frames",
}

__all__ = [
    "Diagnosis",
    "Questions",
    "diagnose",
    "new_figure",
    "plot",
    "read_report",
    "to_dataframe",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name not in _MODULES:
        raise AttributeError(f"module 'fusion_report' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
