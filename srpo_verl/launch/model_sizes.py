"""Sizes of the paper's two models, as in their published `config.json`: what must fit, and into what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a dense Qwen3 model.

    Attributes:
        parameters: embeddings, and the head where it is not tied to them, included.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab: as the configuration names them.
        tied: the head is the embedding matrix.
        max_positions: `max_position_embeddings`; a longer sequence is refused at the start of a run.
        native_context: tokens the model was trained on without scaling of its positions.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    max_positions: int
    native_context: int

    @property
    def embedding_parameters(self) -> int:
        """Embeddings, and the head where it has weights of its own: FSDP's root unit, but for one norm."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """One decoder layer, FSDP's other units: what is left of all after embeddings and final norm."""
        return (self.parameters - self.embedding_parameters - self.hidden) // self.layers

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


MODELS = {
    "Qwen/Qwen3-8B": ModelSizes(
        parameters=8_190_735_360,
        layers=36,
        hidden=4096,
        intermediate=12288,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab=151936,
        tied=False,
        max_positions=40960,
        native_context=32768,
    ),
    "Qwen/Qwen3-4B": ModelSizes(
        parameters=4_022_468_096,
        layers=36,
        hidden=2560,
        intermediate=9728,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab=151936,
        tied=True,
        max_positions=40960,
        native_context=32768,
    ),
}
"""By the name on the model hub."""


def find_sizes(path: str) -> ModelSizes | None:
    """Sizes of the model at `path`, a hub name or a local folder of the same last part; None for any other model."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return next((sizes for known, sizes in MODELS.items() if known.endswith(f"/{name}")), None)
