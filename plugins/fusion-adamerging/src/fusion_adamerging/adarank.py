"""AdaRank (arXiv:2503.22178): learn which singular components of the task vectors to merge."""

from __future__ import annotations

from fusion_adamerging.coefficient_merge import CoefficientMerge
from fusion_adamerging.components import LearnableComponents
from fusion_adamerging.config import AdaRankConfig


class AdaRank(CoefficientMerge[AdaRankConfig, LearnableComponents]):
    """base + sum over experts of lambda_kl * U diag(B * S) V', with a learned B of zeros and ones.

    U diag(S) V' is the singular value decomposition of expert k's task vector of matrix l. A tensor
    that is not a matrix is merged with its whole task vector instead. Every matrix is decomposed.
    The authors' code excludes some by name, such as embeddings.
    """

    config_class = AdaRankConfig
    learns = LearnableComponents
