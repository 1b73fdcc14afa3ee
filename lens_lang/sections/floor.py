"""What a test of few samples cannot show: the smallest p that it can give."""

from collections.abc import Iterable

from lens_lang.evaluate.significance import least_p
from lens_lang.sections.section import p_value

_LEVEL = 0.05
"""Where even the smallest p is above this after correction, a p says little."""


def too_few(samples: int, tests: int) -> bool:
    """Say whether a sign-flip test cannot give a small p, however clear the effect.

    Args:
        samples: Such as aligned questions.
        tests: For how many the p is corrected.

    Examples:
        >>> too_few(6, 18), too_few(12, 18)
        (True, False)
    """
    return samples > 0 and least_p(samples) * tests > _LEVEL


def at_floor(p: float, samples: int, tests: int) -> bool:
    """Say whether a p is the smallest that the test can give, and that is not small.

    Args:
        p: Before its correction.
        samples: See `too_few`.
        tests: See `too_few`.
    """
    return too_few(samples, tests) and p < 1 and p <= least_p(samples) * (1 + 1e-9)


def floor_sentences(tested: Iterable[tuple[int, int]], what: str) -> list[str]:
    """Say what the smallest p is, where it is not small.

    Args:
        tested: Samples and tests of every p that stands in the table.
        what: What the samples are, such as "aligned questions".

    Returns:
        One sentence or two; none if small p can be reached.

    Examples:
        >>> print(*floor_sentences([(6, 18), (6, 18)], "aligned questions"))
        †: with 6 aligned questions the smallest p this test can give is .031, and .562 after \
correction over 18; a p with † is at it, and says only that all moved the same way. None of these \
can be small: read the intervals.
    """
    few = sorted({pair for pair in tested if too_few(*pair)})
    if not few:
        return []
    parts = []
    for samples in dict.fromkeys(samples for samples, _ in few):
        least = least_p(samples)
        after = [
            f"{p_value(min(1.0, least * tests))} after correction over {tests}"
            for number, tests in few
            if number == samples
        ]
        parts.append(
            f"with {samples} {what} the smallest p this test can give is {p_value(least)}, and "
            + ", ".join(after)
        )
    return [
        f"†: {'; '.join(parts)}; a p with † is at it, and says only that all moved the same way. "
        "None of these can be small: read the intervals."
    ]
