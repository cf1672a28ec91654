"""What the student is asked to imitate, on tensors, in float32 whatever the models' precision; one file per family."""

from kdnb.losses.contrastive import ContrastiveLoss, QueueLoss
from kdnb.losses.logits import (
    decoupled_loss,
    dist_loss,
    entropy,
    logit_standardised_loss,
    normalised_loss,
    soft_target_loss,
)
from kdnb.losses.maps import (
    ReviewLoss,
    attention_transfer_loss,
    hierarchical_context_loss,
    hint_loss,
    hint_regressor,
    patch_relation_loss,
)
from kdnb.losses.mix import DistillationLoss, labels_fit
from kdnb.losses.pooled import PhiS, cosine_loss, cosine_smooth_l1_loss, fit_phi_s, standardised_mse
from kdnb.losses.relations import probabilistic_loss, relational_loss, similarity_loss

__all__ = [
    "ContrastiveLoss",
    "DistillationLoss",
    "PhiS",
    "QueueLoss",
    "ReviewLoss",
    "attention_transfer_loss",
    "cosine_loss",
    "cosine_smooth_l1_loss",
    "decoupled_loss",
    "dist_loss",
    "entropy",
    "fit_phi_s",
    "hierarchical_context_loss",
    "hint_loss",
    "hint_regressor",
    "labels_fit",
    "logit_standardised_loss",
    "normalised_loss",
    "patch_relation_loss",
    "probabilistic_loss",
    "relational_loss",
    "similarity_loss",
    "soft_target_loss",
    "standardised_mse",
]
