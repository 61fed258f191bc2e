"""How many tokens stay masked: the schedules of MaskGIT (arXiv 2202.04200, section 3.3) and Muse's guidance ramp."""

import math
import re

SCHEDULES = ("cosine", "linear", "square", "cube", "sqrt", "log", "exp")
RAMPS = ("constant", "linear")
_POWERS = {"linear": 1.0, "square": 2.0, "cube": 3.0, "sqrt": 0.5}
_POWER = re.compile(r"pow(\d+(?:\.\d+)?)")


def check_schedule(schedule: str) -> None:
    """ValueError if there is no such schedule."""
    power = _POWER.fullmatch(schedule)
    if schedule not in SCHEDULES and (power is None or float(power[1]) == 0):
        raise ValueError(f"unknown schedule {schedule!r}; one of {', '.join(SCHEDULES)}, or a power such as pow2.5")


def masked_share(schedule: str, progress: float, total: int) -> float:
    """Share of `total` unknown tokens that stays masked after `progress` r in [0, 1].

    cosine cos(πr/2); powN 1 - r^N (linear, square, cube, sqrt: N = 1, 2, 3, ½); log -log(r) / log(total), at most 1;
    exp 1 - total^(r - 1). All but exp begin at 1, all end at 0.
    """
    if schedule == "cosine":
        return math.cos(math.pi / 2 * progress)
    if schedule == "log":
        return 1.0 if progress * total <= 1 else -math.log(progress) / math.log(total)
    if schedule == "exp":
        return 1 - max(total, 2) ** (progress - 1)
    power = _POWER.fullmatch(schedule)
    return 1 - progress ** (_POWERS[schedule] if power is None else float(power[1]))


def guidance_at(ramp: str, guidance_scale: float, done: float) -> float:
    """Guidance scale at a step after which the share `done` of the steps is taken: the whole, or growing from 1 to it
    (Muse, arXiv 2301.00704, section 2.7: early tokens are diverse, late ones obey)."""
    return guidance_scale if ramp == "constant" else 1 + (guidance_scale - 1) * done
