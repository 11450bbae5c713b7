"""Whether values can be Hounsfield units: a head on CT has air around it."""

from __future__ import annotations

AIR_HU = -200  # a slice or volume that has nothing below this has no air
_AIR_STORED = 100  # what air becomes at most where 1024 was added to HU
_NO_WINDOW_HU = 500  # a head without air that has more than this has bone, and bone has air around it


def no_hounsfield(low: float, high: float, *, eight_bit: bool) -> str:
    """What CT without air holds instead of HU; "" for a brain cut out of its surroundings.

    Args:
        low: Lowest value.
        high: Highest value.
        eight_bit: Whether the values are stored in 8 bits.

    Example:
        >>> no_hounsfield(0, 2900, eight_bit=False), no_hounsfield(0, 90, eight_bit=False)
        ('no air: stored as HU + 1024, or MR signal', '')
    """
    if not 0 <= low <= _AIR_STORED or (high <= _NO_WINDOW_HU and high != 255 and not eight_bit):
        return ""
    return "8-bit grey levels, windowed already" if high <= 255 else "no air: stored as HU + 1024, or MR signal"
