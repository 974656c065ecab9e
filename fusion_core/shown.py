"""How numbers and names are shown to people."""

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def amount(count: int) -> str:
    """Show a number of bytes."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def printable(text: str) -> str:
    """Escape what a terminal would obey: names and paths may come from anywhere."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
