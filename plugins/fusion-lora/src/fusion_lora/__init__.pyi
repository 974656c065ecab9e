from fusion_lora.reading.experts import EXPERT_LAYOUTS as EXPERT_LAYOUTS
from fusion_lora.reading.source import LoraSource as LoraSource
