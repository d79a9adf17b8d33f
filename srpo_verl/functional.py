"""SRPO as plain functions on tensors: the public face of `srpo_verl.algos`. Needs torch and nothing else.

==========================  =====================================================  =====================
what                        function                                               equation in docs/algorithm.md
==========================  =====================================================  =====================
sample routing              route_samples -> Routing                               (1), paper §3.1
a routing of your own       a function: Rows -> Shares                             (1), generalised
group-relative advantage    group_advantages                                       (2), paper §2.1, §4.1
advantage by the teacher    teacher_ratio_advantages                               A of (2), RLSD
clipped policy loss         ppo_token_loss                                         (2), paper §2.1, §4.1
truncated ratio             importance_ratio                                       (3), appendix B.5
student's top-K support     topk_support                                           (3), appendix B.5
teacher scores              score_teacher                                          (3) and (4)
distillation divergence     distillation_loss                                      (3), paper §2.2
log-probs and divergence    token_losses -> TokenLosses                            (2) and (3), fused
weights of prompts          pass_rate_weights                                      (5), factor of d
entropy-aware weights       entropy_weights                                        (4), paper §3.2
objective                   srpo_objective, objective_summands                     (5), paper §3.3
==========================  =====================================================  =====================

Axis letters: N tokens, V vocabulary, K support, B samples, T response positions. Entropies and divergences are in
nats. Every error is a ValueError that names the offending shape, value or index.
"""

from srpo_verl.algos.advantage import group_advantages
from srpo_verl.algos.credit import teacher_ratio_advantages
from srpo_verl.algos.divergence import distillation_loss
from srpo_verl.algos.entropy_weight import entropy_weights
from srpo_verl.algos.objective import objective_summands, srpo_objective
from srpo_verl.algos.pass_rate_weight import pass_rate_weights
from srpo_verl.algos.policy_loss import importance_ratio, ppo_token_loss
from srpo_verl.algos.routing import Routing, route_samples
from srpo_verl.algos.routings import Rows, Shares
from srpo_verl.algos.teacher_score import score_teacher, topk_support
from srpo_verl.algos.token_losses import TokenLosses, token_losses

__all__ = [
    "Routing",
    "Rows",
    "Shares",
    "TokenLosses",
    "distillation_loss",
    "entropy_weights",
    "group_advantages",
    "importance_ratio",
    "objective_summands",
    "pass_rate_weights",
    "ppo_token_loss",
    "route_samples",
    "score_teacher",
    "srpo_objective",
    "teacher_ratio_advantages",
    "token_losses",
    "topk_support",
]
