from fusion_sweep.results import SweepResult as SweepResult
from fusion_sweep.runner import sweep as sweep
from fusion_sweep.search import Search as Search
from fusion_sweep.store import Store as Store
from fusion_sweep.trial import Trial as Trial
