"""Numbers, times and counts as a reader wants to see them."""

import math
from datetime import UTC, datetime

SHARES = frozenset({"exact", "accuracy", "rate", "share"})
"""Details of these names are shares of the prompts, shown in percent."""

MINUS, TIMES, NONE = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_share(figure: str) -> bool:
    """Say whether a figure ("ocr/exact") is the share of the prompts that something is true of."""
    return "/" in figure and figure.rsplit("/", 1)[1] in SHARES


def value(number: float, *, share: bool = False) -> str:
    """Return a score: "0.573" or, as a share, "27.0 %"; a dash where there is none."""
    if not math.isfinite(number):
        return NONE
    text = f"{number * 100:.1f} %" if share else _score(number)
    return text.replace("-", MINUS)


def change(number: float, *, share: bool = False) -> str:
    """Return a difference with its sign: "+0.107" or, between shares, "+25.3 points"."""
    if not math.isfinite(number):
        return NONE
    sign = "+" if number >= 0 else MINUS
    return f"{sign}{abs(number) * 100:.1f} points" if share else f"{sign}{_score(abs(number))}"


def _score(number: float) -> str:
    # Scores mostly lie between 0 and 1 and stand beside each other, so they get the same number of decimals.
    if number == 0 or 0.001 <= abs(number) < 10:
        return f"{number:.3f}"
    return f"{number:.4f}" if 0.0001 <= abs(number) < 0.001 else decimal(number)


def decimal(number: float, digits: int = 3) -> str:
    """Return a number with at most `digits` figures that matter, without zeros at its end."""
    if not math.isfinite(number):
        return NONE
    size = abs(number)
    if size and (size < 1e-3 or size >= 1e6):
        return scientific(number, digits - 1)
    if size >= 10 ** (digits - 1) or not size:
        return f"{number:,.0f}".replace("-", MINUS)
    text = f"{number:.{digits - 1 - math.floor(math.log10(size))}f}"
    return text.rstrip("0").rstrip(".").replace("-", MINUS)


def scientific(number: float, decimals: int = 2) -> str:
    """Return "1.5 × 10⁻⁵", without decimals that are zero."""
    mantissa, exponent = f"{number:.{decimals}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = f"10{superscript(int(exponent))}"
    mantissa = mantissa.replace("-", MINUS)
    return power if mantissa == "1" else f"{mantissa} {TIMES} {power}"


def superscript(exponent: int) -> str:
    """Return a whole number in superscript figures."""
    return str(exponent).translate(_SUPERSCRIPTS)


def duration(time: float) -> str:
    """Return "4.2 s", "5 min 12 s", "3 h 05 min" or "2 d 4 h"."""
    if time < 60:
        return f"{time:.0f} s" if time >= 20 else f"{time:.1f} s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def percent(share: float, decimals: int = 1) -> str:
    """Return a share as "12.5 %"."""
    return f"{share * 100:.{decimals}f} %"


def amount(number: int) -> str:
    """Return a large count in short: "83.7 K", "5.1 M", "11.9 B"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return str(number)


def gib(size: float) -> str:
    """Return bytes as "1.32 GiB"; a dash where they are not known."""
    return f"{size / 2**30:.2f} GiB" if math.isfinite(size) else NONE


def seconds(number: float) -> str:
    """Return "0.15 s" or "4.93 s", and longer times as `duration` does."""
    return f"{number:.2f} s" if number < 10 else duration(number)


def moment(time: float) -> str:
    """Return a Unix time as a date in UTC, so that a report reads the same wherever it was written."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def count(number: int, noun: str, plural: str = "") -> str:
    """Return "1 iteration" or "25 iterations"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(words: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
