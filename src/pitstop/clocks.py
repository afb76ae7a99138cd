"""Times as people read them."""


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`; of a second only what is whole."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
