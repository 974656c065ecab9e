"""Prediction of a run from headers: alignment, disk, memory and licences. Nothing is written."""
