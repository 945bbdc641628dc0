"""Pure functions on numbers and labels, each estimate with its 95 % interval; none knows of models or engines."""

from rlaif.statistics.agreement import (
    cohen_kappa,
    fleiss_kappa,
    fleiss_kappa_of_counts,
    krippendorff_alpha,
)
from rlaif.statistics.calibration import Bin, Calibration, Confidences, calibration_of, soft_confidences
from rlaif.statistics.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    WinRate,
    best_of_n_kl,
    item_means,
    mean_interval,
    pair_accuracy,
    points_interval,
    share_interval,
    win_rate,
)
from rlaif.statistics.jury import jury_weights
from rlaif.statistics.pairwise import (
    BothOrders,
    OrderBias,
    both_orders,
    longer_rate,
    order_bias,
    unswap,
)
from rlaif.statistics.ranking import (
    BradleyTerry,
    Game,
    SystemCorrelations,
    bradley_terry,
    elo,
    system_correlations,
)

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Bin",
    "BothOrders",
    "BradleyTerry",
    "Calibration",
    "Confidences",
    "Game",
    "Interval",
    "OrderBias",
    "SystemCorrelations",
    "WinRate",
    "best_of_n_kl",
    "both_orders",
    "bradley_terry",
    "calibration_of",
    "cohen_kappa",
    "elo",
    "fleiss_kappa",
    "fleiss_kappa_of_counts",
    "item_means",
    "jury_weights",
    "krippendorff_alpha",
    "longer_rate",
    "mean_interval",
    "order_bias",
    "pair_accuracy",
    "points_interval",
    "share_interval",
    "soft_confidences",
    "system_correlations",
    "unswap",
    "win_rate",
]
