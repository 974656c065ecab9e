"""Report, compare and plot runs of fusion-core, and predict which merges will work.

from fusion_core import run_fusion
from fusion_report import diagnose, plot

print(diagnose({"model_pool": "mini8"}).advice)
plot(run_fusion(model_pool="mini8", task_pool="mini8", algorithm="ties", output=None))
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
