"""How reports are shown to people."""
