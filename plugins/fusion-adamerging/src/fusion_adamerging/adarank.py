"""AdaRank (arXiv:2503.22178): singular components of task vectors switched on and off."""

from __future__ import annotations

from fusion_adamerging.components import LearnedComponents
from fusion_adamerging.config import AdaRankConfig
from fusion_adamerging.kept import KeptCoefficients


class AdaRank(KeptCoefficients[AdaRankConfig, LearnedComponents]):
    """base + sum over experts of lambda_kl * U diag(B * S) V', with B of zeros and ones learned.

    U diag(S) V' is the singular value decomposition of expert k's task vector of a matrix l; of
    tensors of other dimensions the whole task vector takes its place. Each matrix is decomposed:
    the authors' code leaves embeddings and the like whole, by their names.
    """

    config_class = AdaRankConfig
    learns = LearnedComponents
