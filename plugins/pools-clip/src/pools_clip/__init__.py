"""CLIP model pools and classification tasks for fusion-core."""
