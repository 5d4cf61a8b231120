"""The decoder of policy and judge, for training, prefill and decoding.

Qwen2 (arXiv 2407.10671, section 2.2); Mistral (arXiv 2310.06825, without its window) and Llama (arXiv 2307.09288) are
the same without biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.models.attention import attention, packed_segments
from perception_r1_jax.models.block_attention import attention_behind, block_attention
from perception_r1_jax.models.cache import KeyValues
from perception_r1_jax.models.cached_attention import Tables, cached_attention
from perception_r1_jax.models.config import ModelConfig
from perception_r1_jax.models.layers import GatedMLP, Linear, RMSNorm, parameter, scan_layers, stack_layers
from perception_r1_jax.models.prefix import Prefix
from perception_r1_jax.models.quantized import Int8, contract_rows, look_up
from perception_r1_jax.models.rope import Angles, mrope_angles, rotate
from perception_r1_jax.records import AnyArray
from perception_r1_jax.sharding import constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q, k, v of the new tokens) -> (attention output, whatever the caller wants to keep: nothing, or a cache)."""


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions, biases on q, k and v if any; the caller says to what to attend."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        hidden, head, bias = config.hidden_size, config.head_dim, config.attention_bias
        q_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = Linear((hidden, config.num_heads, head), q_axes, bias=bias, rngs=rngs)
        self.k = Linear((hidden, config.num_kv_heads, head), kv_axes, bias=bias, rngs=rngs)
        self.v = Linear((hidden, config.num_kv_heads, head), kv_axes, bias=bias, rngs=rngs)
        self.o = Linear((config.num_heads, head, hidden), ("heads", "head_dim", "embed"), contract=2, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"], angles: Angles, attend: Attend) -> tuple[Float[Array, "*B D"], Any]:
        # Here rows are split over all of `data` and `fsdp`, however x was laid out, and so are caches made of k and v.
        q = constrain(rotate(self.q(x), angles), ("batch", None, "heads", "head_dim"))
        k = constrain(rotate(self.k(x), angles), ("batch", None, "kv_heads", "head_dim"))
        v = constrain(self.v(x), ("batch", None, "kv_heads", "head_dim"))
        out, kept = attend(q, k, v)
        return self.o(out), kept


class DecoderLayer(nnx.Module):
    """A pre-norm block."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"], angles: Angles, attend: Attend) -> tuple[Float[Array, "*B D"], Any]:
        attended, kept = self.attention(self.input_norm(x), angles, attend)
        x = x + attended
        return x + self.mlp(self.post_attention_norm(x)), kept


class Embedding(nnx.Module):
    """Token embeddings [V, D]."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = parameter(rngs.params(), shape, ("vocab", "embed"), summed=(1,))


class Head(nnx.Module):
    """The output matrix of an untied model, [V, D] like the embedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.kernel = parameter(rngs.params(), shape, ("vocab", "embed"), summed=(1,))


class Decoder(nnx.Module):
    """Embedding, layers, final norm, and a head of its own unless it is tied to the embedding.

    Training scans over stacked layers. Serving (prefill and decoding) has a list of them: a step that feeds one token
    would spend its time on copying each layer's weights out of the stack.
    """

    def __init__(self, config: ModelConfig, *, serving: bool, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs=rngs)
        if serving:
            self.layers = nnx.List(DecoderLayer(config, rngs=rngs) for _ in range(config.num_layers))
        else:
            self.layers = stack_layers(lambda rngs: DecoderLayer(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_embeddings else Head(config, rngs=rngs)

    def angles(self, positions: Int[AnyArray, "B 3 T"]) -> Angles:
        """Rotary angles [B, T, half] of these positions."""
        return mrope_angles(positions, self.config.head_dim, self.config.rope_theta, self.config.mrope_section)

    def embed_tokens(self, tokens: Int[AnyArray, "*B"]) -> Float[Array, "*B D"]:
        """Looks embeddings up."""
        found = look_up(self.embed.embedding.get_value(), tokens)
        # The table's own layout, so that a gradient that comes by batch finds its way to the table without a gather.
        return constrain(found, ("lookup",) + (None,) * (tokens.ndim - 1) + ("embed",))

    @property
    def output_matrix(self) -> Float[Array, "V D"] | Int8:
        """Whose products with hidden states are the logits."""
        return (self.embed.embedding if self.head is None else self.head.kernel).get_value()

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 logits."""
        return contract_rows(hidden, self.output_matrix)

    def forward(
        self,
        x: Float[Array, "B T D"],
        positions: Int[AnyArray, "B 3 T"],
        attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        remat: str = "none",
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, for whole rows; `attend` makes their attention of q, k and v."""
        angles = self.angles(positions)

        def body(layer, x, _):
            x, _ = layer(x, angles, lambda q, k, v: (attend(q, k, v), None))
            return constrain(x, ("batch", None, None)), None

        x, _ = scan_layers(self.layers, body, x, None, remat)
        return self.norm(x)

    def prefill(
        self,
        x: Float[Array, "N L D"],
        positions: Int[AnyArray, "N 3 L"],
        lengths: Int[AnyArray, " N"],
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "N L D"], list[tuple[Float[Array, "N L kv_heads H"], Float[Array, "N L kv_heads H"]]]]:
        """Hidden states of right-padded prompts, and the keys and values of each layer. For serving.

        With a prefix these are the rest of the prompts, and so are the keys and values.
        """
        angles = self.angles(positions)
        real = jnp.arange(x.shape[1])[None, :] < lengths[:, None]
        segments = packed_segments(jnp.where(real, 0, -1))
        mask = segments if prefix is None else segments.mask()
        x, kept = constrain(x, ("batch", None, None)), []
        for index, layer in enumerate(self.layers):

            def attend(q, k, v, index=index):
                if prefix is None:
                    return attention(q, k, v, mask), (k, v)
                return attention_behind(q, k, v, mask, prefix.layer(index, k.dtype)), (k, v)

            x, kv = layer(x, angles, attend)
            x = constrain(x, ("batch", None, None))
            kept.append(kv)
        return self.norm(x), kept

    def decode_step(
        self,
        x: Float[Array, "shards B D"],
        angles: Angles,
        prompts: KeyValues,
        pages: KeyValues,
        recent: KeyValues,
        step: Int[Array, ""],
        tables: Tables,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "shards B D"], KeyValues]:
        """Feeds a token of each sequence; its keys and values are the recent ones at `step`. For serving.

        The angles are given, [shards, B, half]: a step would compute them again for every head of every layer.
        """
        x = constrain(x, ("batch", None, None))
        for index, layer in enumerate(self.layers):

            def attend(q, k, v, index=index, recent=recent):
                written = recent.write(index, step, k, v)
                caches = ((cache.k[index], cache.v[index]) for cache in (prompts, pages, written))
                shared = None if prefix is None else (prefix.k[index], prefix.v[index])
                return cached_attention(q, *caches, step, tables, shared), written

            x, recent = layer(x, angles, attend)
            x = constrain(x, ("batch", None, None))
        return self.norm(x), recent

    def extend(
        self,
        x: Float[Array, "N S D"],
        angles: Angles,
        rows: KeyValues,
        start: Int[Array, ""],
        seen: Bool[Array, "N S L"],
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "N S D"], KeyValues]:
        """Feeds a block of tokens of each row, whose keys and values go to `start` of its entry. For serving.

        The angles are [N, S, half], as of `decode_step`.
        """
        x = constrain(x, ("batch", None, None))
        for index, layer in enumerate(self.layers):

            def attend(q, k, v, index=index, rows=rows):
                written = rows.write_block(index, start, k, v)
                own = (written.k[index][:, 0], written.v[index][:, 0])
                shared = None if prefix is None else prefix.layer(index, q.dtype)
                return block_attention(q, own, seen, shared), written

            x, rows = layer(x, angles, attend)
            x = constrain(x, ("batch", None, None))
        return self.norm(x), rows
