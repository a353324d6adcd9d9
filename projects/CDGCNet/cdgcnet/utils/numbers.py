"""Numbers in tables and reports."""


def fixed(value: float, digits: int = 2) -> str:
    """A number with a fixed number of digits; one that rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 is 0.0


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, "+0.50" or "−0.50"; one that rounds to zero is "+0.00"."""
    text = fixed(value, digits)
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"
