"""Numbers as people read them."""

from __future__ import annotations


def three_digits(value: float) -> str:
    """A number as short as three digits allow, never with an exponent: 0.0998, 1.00, 27.9, 2,031."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def number(value: float | None) -> str:
    """Three digits at least, whole numbers whole; a dash for none."""
    if value is None:
        return "-"
    if value == 0 or (abs(value) >= 100 or float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:.4f}".replace("-0.0000", "0.0000") if abs(value) < 0.01 else three_digits(value)


def four_digits(value: float) -> str:
    """A value in four digits."""
    return f"{value:#.4g}".rstrip(".")


def short(size: float) -> str:
    """A size in three digits and a letter: 950, 12.3k, 1.05M, 20.0M; beyond 10^15 with an exponent."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit * 0.9995 <= size < 1000 * unit:
            return f"{size / unit:#.3g}".rstrip(".") + letter
    return f"{size:.3g}"


def thousands(numbers: list[int] | tuple[int, ...]) -> str:
    """The size of each stage, in units that keep it short: 9 > 12 > 15 > 18k."""
    unit, name = next((u, n) for u, n in ((1e6, "M"), (1e3, "k"), (1, "")) if numbers[-1] >= 10 * u or u == 1)
    return " > ".join(f"{number / unit:.0f}" for number in numbers) + name
