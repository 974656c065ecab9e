"""The command `fuse import`, and what plugins that import other tools' recipes share."""

from recipes_import.findings import ImportFindings

__all__ = ["ImportFindings"]
