"""The one table of losses: what each compares, what it needs, where it is from. docs/losses.md shows it."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdnb.losses.contrastive import ContrastiveLoss, QueueLoss
from kdnb.losses.logits import decoupled_loss, dist_loss, logit_standardised_loss, normalised_loss, soft_target_loss
from kdnb.losses.maps import ReviewLoss, attention_transfer_loss, hint_loss, patch_relation_loss
from kdnb.losses.operands import in_range
from kdnb.losses.pooled import PhiS, cosine_loss, cosine_smooth_l1_loss, standardised_mse
from kdnb.losses.relations import probabilistic_loss, relational_loss, similarity_loss


@dataclass(frozen=True)
class Method:
    """A loss.

    Attributes:
        short: what papers call it. compares: which outputs of teacher and student.
        needs: what it needs beside them, "" for nothing. stored: whether stored teacher outputs have what it needs.
        choice: its name as the parameter `loss`, "" where it is none. weights: those of its paper, which `loss_args` changes;
            "scale", which papers give to means of small numbers, multiplies the loss.
    """

    loss: Callable
    short: str
    compares: str
    needs: str
    stored: bool
    paper: str
    choice: str = ""
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the function or class in kdnb.losses."""
        return self.loss.__name__

    @property
    def of_logits(self) -> bool:
        """Whether it compares logits, which a teacher without a classification head has not."""
        return self.compares == "logits"

    @property
    def needs_labels(self) -> bool:
        """Whether it compares with the labels."""
        return "labels" in inspect.signature(self.loss).parameters


METHODS = (
    # logits [B, C]
    Method(soft_target_loss, "KD", "logits", "", True, "Hinton et al. 2015, arXiv:1503.02531", "soft_targets"),
    Method(logit_standardised_loss, "LSKD", "logits", "", True, "Sun et al. 2024, arXiv:2403.01427", "logit_standardised"),
    Method(decoupled_loss, "DKD", "logits", "labels", True, "Zhao et al. 2022, arXiv:2203.08679", "decoupled",
           {"alpha": 1.0, "beta": 8.0}),
    Method(dist_loss, "DIST", "logits", "2 images a batch", True, "Huang et al. 2022, arXiv:2205.10536", "dist",
           {"beta": 1.0, "gamma": 1.0}),
    Method(normalised_loss, "NKD", "logits", "labels", True, "Yang et al. 2023, arXiv:2303.13005", "normalised", {"gamma": 1.5}),
    # pooled features [B, D]
    Method(cosine_loss, "cosine", "features", "", True, "", "cosine"),
    Method(standardised_mse, "MSE", "features", "mean and std of the teacher's", True, "", "mse"),
    Method(PhiS, "PHI-S", "features", "fit_phi_s of the teacher's", True, "Ranzinger et al. 2024, arXiv:2410.01680", "phi_s"),
    Method(cosine_smooth_l1_loss, "UNIC", "features", "", True, "Sariyildiz et al. 2024, arXiv:2408.05088", "cosine_smooth_l1",
           {"weight": 0.5}),
    Method(relational_loss, "RKD", "features", "3 images a batch", True, "Park et al. 2019, arXiv:1904.05068", "relational",
           {"distance_weight": 1.0, "angle_weight": 2.0}),
    Method(similarity_loss, "SP", "features", "2 images a batch", True, "Tung & Mori 2019, arXiv:1907.09682", "similarity",
           {"scale": 3000.0}),
    Method(probabilistic_loss, "PKT", "features", "2 images a batch", True, "Passalis & Tefas 2018, arXiv:1803.10837",
           "probabilistic", {"scale": 30_000.0}),
    Method(ContrastiveLoss, "CRD", "features", "ids; a bank of all images", True, "Tian et al. 2020, arXiv:1910.10699"),
    Method(QueueLoss, "queue", "features", "a queue of the last images", True, "lightly-train, distillation v1"),
    # feature maps [B, C, H, W] of layers, and patch tokens [B, N, D]
    Method(attention_transfer_loss, "AT", "maps", "layers", False, "Zagoruyko & Komodakis 2017, arXiv:1612.03928"),
    Method(hint_loss, "FitNet", "maps", "layers; regressors", False, "Romero et al. 2015, arXiv:1412.6550"),
    Method(ReviewLoss, "ReviewKD", "maps", "layers; its weights", False, "Chen et al. 2021, arXiv:2104.09044"),
    Method(patch_relation_loss, "patches", "tokens", "as many patches", True, "lightly-train, distillation v3"),
)  # fmt: skip
CHOICES = {method.choice: method for method in METHODS if method.choice}


def needs_labels(loss: str, *, alpha: float) -> bool:
    """Whether a run needs labels: an `alpha` below 1 mixes cross-entropy in, and some losses need them themselves."""
    return alpha < 1 or CHOICES[loss].needs_labels


def loss_weights(loss: str, loss_args: Mapping | None) -> dict[str, float]:
    """The weights of a loss that `loss` names: its paper's, but for those in `loss_args`.

    Raises:
        ValueError: no such loss, or loss_args that it does not take.
    """
    in_range("loss", loss, loss in CHOICES, "one of " + ", ".join(CHOICES))
    weights, given = CHOICES[loss].weights, loss_args or {}
    for name, value in given.items():
        if name not in weights:
            takes = f"takes {', '.join(weights)}" if weights else "takes none"
            raise ValueError(f"loss_args has {name}, but loss is {loss}, which {takes}; leave it out.")
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        in_range(f"{name} in loss_args", value, fine, "a number of at least 0")
    return {**weights, **given}


def table() -> str:
    """METHODS as a Markdown table."""
    rows = [("name", "called", "compares", "needs", "stored outputs", "`loss`", "`loss_args`", "source"), ("---",) * 8]
    for m in METHODS:
        choice, weights = f"`{m.choice}`" if m.choice else "", ", ".join(f"{name} {value:g}" for name, value in m.weights.items())
        rows.append((f"`{m.name}`", m.short, m.compares, m.needs, "yes" if m.stored else "no", choice, weights, m.paper))
    return "\n".join(" | ".join(("", *row, "")).strip() for row in rows)
