from fusion_core.contracts.task_data import file_stamps as file_stamps
from fusion_core.weights.reading.containment import open_named as open_named
from fusion_core.weights.reading.containment import read_whole as read_whole
from fusion_core.weights.reading.containment import report_unreadable as report_unreadable
from fusion_core.weights.reading.containment import resolve_member as resolve_member
from fusion_core.weights.writing.disk import allocate as allocate
from fusion_core.weights.writing.disk import write_durably as write_durably
from fusion_core.weights.writing.lock import lock_output as lock_output
