"""Reports on the terminal: tables, notes and warnings."""
