"""Small options for every bottleneck of the table, and for the compositions that count as bottlenecks of their own."""

from typing import Any

# One entry for each name of `BOTTLENECKS`; what is listed there and not here fails a test.
OPTIONS: dict[str, dict[str, Any]] = {
    "kl": {"channels": 4},
    "ae": {"channels": 4},
    "vq": {"codes": 32, "channels": 4},
    "simvq": {"codes": 32, "channels": 4},
    "stochastic-vq": {"codes": 32, "channels": 4},
    "joint-vq": {"codes": 32, "semantic_channels": 3, "pixel_channels": 2},
    "gumbel": {"codes": 16, "channels": 4},
    "adacode": {"codes": 32, "channels": 4, "count": 3, "levels": 5},
    "fsq": {"levels": [5, 4, 3]},
    "lfq": {"bits": 6},
    "bsq": {"bits": 6},
    "residual": {"inner": "fsq", "options": {"levels": [5, 4, 3]}, "count": 3},
    "product": {"inner": "vq", "options": {"codes": 16, "channels": 3}, "count": 2, "disentangle": 0.1},
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, options) for name, options in OPTIONS.items()},
    "kl, fixed deviation": ("kl", {"channels": 4, "deviation": 0.3}),
    "vq, euclidean, k-means, rotation": (
        "vq",
        {"codes": 32, "channels": 4, "cosine": False, "kmeans_steps": 3, "rotation": True},
    ),
    "vq, balanced": ("vq", {"codes": 32, "channels": 4, "balance": 0.05}),
    "fsq, entropy": ("fsq", {"levels": [5, 4, 3], "entropy": 0.1, "entropy_boost": 3.0, "commitment": 0.25}),
    "lfq, two ids": ("lfq", {"bits": 8, "groups": 2}),
    "bsq, 36 bits": ("bsq", {"bits": 36, "groups": 2}),
    "gumbel, cooling": ("gumbel", {"codes": 16, "channels": 4, "cooling_steps": 10}),
    "residual vq": (
        "residual",
        {"inner": "vq", "options": {"codes": 16, "channels": 4, "cosine": False}, "count": 3, "dropout": 0.5},
    ),
    "residual lfq": ("residual", {"inner": "lfq", "options": {"bits": 5}, "count": 3}),
    "adacode, kept": ("adacode", {"codes": 32, "channels": 4, "count": 3, "levels": 5, "kept": 2, "dropout": 0.5}),
    "product of residuals": (
        "product",
        {
            "inner": "residual",
            "options": {"inner": "simvq", "options": {"codes": 16, "channels": 3}, "count": 2},
            "count": 2,
        },
    ),
}

# Those whose loss is of a whole batch at once.
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "fsq": ("fsq", {"levels": [5, 4, 3], "entropy": 0.1, "entropy_boost": 3.0, "temperature": 0.5}),
    "lfq": ("lfq", {"bits": 6, "temperature": 0.5}),
    "lfq, two ids": ("lfq", {"bits": 8, "groups": 2, "temperature": 0.5}),
    "bsq": ("bsq", {"bits": 6}),
    "residual lfq": ("residual", {"inner": "lfq", "options": {"bits": 5, "temperature": 0.5}, "count": 2}),
}
