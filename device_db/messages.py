"""What the messages of other libraries' errors say in one line."""

__all__ = ["first_line"]


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the kind of error when it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
