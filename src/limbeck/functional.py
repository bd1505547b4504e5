"""The pure losses under one name, for people with their own training loop.

Student first, teacher second; settings are keyword-only; `reduction="mean" | "sum" | "none"` as in
`torch.nn.functional`, where "none" gives one value per example. Logits go in, never probabilities.
"""

from limbeck.objectives.divergence import kl
from limbeck.objectives.feature import cosine, hint
from limbeck.objectives.response import label_cross_entropy, mse_logits, mse_probabilities, soft_cross_entropy

__all__ = ["cosine", "hint", "kl", "label_cross_entropy", "mse_logits", "mse_probabilities", "soft_cross_entropy"]
