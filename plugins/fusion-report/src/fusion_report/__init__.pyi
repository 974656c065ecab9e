from fusion_report.diagnosis.diagnose import Diagnosis as Diagnosis
from fusion_report.diagnosis.diagnose import Questions as Questions
from fusion_report.diagnosis.diagnose import diagnose as diagnose
from fusion_report.frames import to_dataframe as to_dataframe
from fusion_report.plots import new_figure as new_figure
from fusion_report.plots import plot as plot
from fusion_report.reading import read_report as read_report
