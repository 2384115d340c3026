"""An encoder: BERT and its kin, with any attention (`bigbird(...)` makes it BigBird)."""

import jax

from lm.models import heads
from lm.models.heads import Head
from lm.models.transformer import Transformer


class Encoder(Transformer):
    """Vectors of tokens that see each other as `config.attention` says, and what is predicted from them.

    `Encoder(config, V, T).apply({'params': params}, inputs)` is `[B, T, D]`.

    Attributes:
        heads: what is predicted, by name, as pairs: a module's fields are hashable.
    """

    heads: tuple[tuple[str, Head], ...] = ()

    def setup(self):
        super().setup()
        self.head = {
            name: heads.make(self.config, head, self.embed, name) for name, head in self.heads
        }

    def __call__(self, inputs: jax.Array, *args, **kwargs) -> jax.Array | dict[str, jax.Array]:
        """Returns `[B, T, D]`, or with heads what each says of every token; arguments as of `hidden`."""
        hidden = self.hidden(inputs, *args, **kwargs)
        if not self.heads:
            return hidden
        return {name: self.predict(hidden, name) for name, _ in self.heads}

    def predict(self, hidden: jax.Array, name: str, deterministic: bool = True) -> jax.Array:
        """Returns what a head says of tokens, `[..., D]`."""
        return self.head[name](hidden, deterministic)
