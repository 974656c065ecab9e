from fusion_core.contracts.task_data import file_stamps as file_stamps
from fusion_core.machine.sandbox import LimitExceeded as LimitExceeded
from fusion_core.machine.sandbox import Limits as Limits
from fusion_core.machine.sandbox import SandboxedWorker as SandboxedWorker
from fusion_core.machine.sandbox import WorkFailed as WorkFailed
from fusion_core.weights.writing.disk import allocate as allocate
from fusion_core.weights.writing.disk import write_durably as write_durably
from fusion_core.weights.writing.lock import lock_output as lock_output
