from fusion_core.contracts.examples import file_stamps as file_stamps
from fusion_core.machine.confined import Confined as Confined
from fusion_core.machine.confined import Limits as Limits
from fusion_core.machine.confined import Overrun as Overrun
from fusion_core.machine.confined import Refused as Refused
from fusion_core.weights.writing.disk import allocate as allocate
from fusion_core.weights.writing.disk import write_durably as write_durably
from fusion_core.weights.writing.lock import locked as locked
