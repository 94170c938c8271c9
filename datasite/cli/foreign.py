"""What researchers wrote, shown so that it can neither move the cursor nor forge a line."""


def plain(text: str) -> str:
    """Give `text` with each character that is not printable as its escape sequence in Python."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
