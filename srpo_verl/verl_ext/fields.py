"""Names, shapes and dtypes of the fields and flags this plugin adds to veRL's batches.

B rows, T a row's response tokens (ragged), K support, L a row's teacher tokens (ragged). Ragged fields are jagged
nested tensors. Fields of width K are flattened to one ragged axis of T*K: veRL re-batches nested tensors of two axes
everywhere, of three only in places.
"""

# --- fields written by the trainer, one row per sample ---------------------------------------------------------------
SDPO_ROW = "srpo_sdpo"
"""bool (B,): the row is distilled, d > 0."""

GRPO_SHARE = "srpo_grpo_share"
"""float32 (B,): g of eq. 5, the row's factor of the policy loss. Rows of veRL's own padding have 0 of both shares."""

SDPO_SHARE = "srpo_sdpo_share"
"""float32 (B,): d of eq. 5, the row's factor of the distillation loss."""

CREDIT_SHARE = "srpo_credit"
"""float32 (B,): how much of the teacher's factor the row's advantages take, above 0 where the teacher is asked for it;
only with srpo.credit=teacher_ratio."""

PASS_RATE = "srpo_pass_rate"
"""float32 (B,): share of the row's group that is correct; only with srpo.weighting.pass_rate."""

GROUP = "srpo_group"
"""int64 (B,): number of the row's group within the training step; only with srpo.weighting.pass_rate."""

TEACHER_INPUT_IDS = "srpo_teacher_input_ids"
"""int64 (B, L): teacher prompt and the row's own response; FILLER for rows that are not distilled."""

TOKEN_SAMPLE = "srpo_token_sample"
"""int64 (B,): the row's number in the step's token sample, -1 where it is not in it; only in sampled steps."""

# --- written by the worker in the pass over old log-probs ------------------------------------------------------------
SUPPORT = "srpo_support"
"""int32 (B, T*K): the student's K most likely tokens at each response position; FILLER for other rows."""

# --- live inside the worker during one update ------------------------------------------------------------------------
TEACHER_LOG_PROBS = "srpo_teacher_log_probs"
"""float32 (B, T*K): the teacher's full-vocabulary log-probs of the support; FILLER for other rows."""

TEACHER_ENTROPY = "srpo_teacher_entropy"
"""float32 (B, T): the teacher's full-vocabulary entropy in nats; 0 for other rows."""

WEIGHTS = "srpo_weights"
"""float32 (B, T): entropy-aware weights w of eq. 4; 0 outside Omega."""

PROMPT_WEIGHTS = "srpo_prompt_weights"
"""float32 (B,): factor of d by the prompt's pass rate, mean 1 over the prompts that distil; only where asked for."""

DIVERGENCE = "srpo_divergence"
"""float32 (B, max T), dense, differentiable: divergence per token in nats; 0 for other rows."""

FILLER_LENGTH = 1
"""Rows that are not distilled hold this many zeros: jagged tensors with empty rows do not survive every veRL path."""

# --- flags, one value per batch --------------------------------------------------------------------------------------
DISTILL = "srpo_distill"
"""bool: some row of the training step is distilled, on whatever rank; all ranks then take part in the teacher pass."""

WANT_SUPPORT = "srpo_want_support"
"""bool: the forward shall return SUPPORT."""

SCORE = "srpo_score"
"""bool: a micro-batch of teacher sequences, to be scored rather than trained on."""

SKIP = "srpo_skip"
"""bool: some score of the teacher's is not finite, on whatever rank; the training step's update is skipped."""

NUM_GRPO_TOKENS = "srpo_num_grpo_tokens"
"""int: tokens of rows with a GRPO share in the optimizer mini-batch that no rejection took out, over all ranks."""

NUM_SDPO_TOKENS = "srpo_num_sdpo_tokens"
"""int: |Omega|, valid tokens of distilled rows in the optimizer mini-batch, over all ranks."""
