"""What is trained: the same small model of the same small text, with each augmentation and without."""

import dataclasses

from ml_collections import ConfigDict

import lm

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """An augmentation at a rate.

    Attributes:
        augment: `config.data.augment`, of one entry; () for none.
        kind: of tokenizer.
        dropout: `config.model.dropout`, to compare with what is usual.
    """

    augment: tuple[str, ...]
    kind: str = 'unigram'
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """In the table and the figure, and of the run's folder."""
        name = ', '.join(self.augment) or 'none'
        if self.dropout:
            name += f', dropout {self.dropout:g}'
        return name if self.kind == 'unigram' else f'{name} ({self.kind})'

    @property
    def reference(self) -> 'Case':
        """The same without augmentation."""
        return Case((), self.kind)


CASES = (
    Case(()),
    Case((), 'bpe'),
    Case(('subword 0.5 0.2',)),
    Case(('bpe_dropout 0.1',), 'bpe'),
    Case(('replace 0.1',)),
    Case(('replace_unigram 0.1',)),
    Case(('replace_nearest 0.1',)),
    Case(('drop 0.1',)),
    Case(('insert 0.1',)),
    Case(('delete 0.1',)),
    Case(('swap 0.1',)),
    Case(('shuffle 0.1',)),
    Case(('permute 0.5',)),
    Case(('rotate 0.5',)),
    Case((), dropout=0.2),
)


def make_config(case: Case, seed: int, steps: int, embedding: str) -> ConfigDict:
    """Returns the config of a run: 6,000 words of Brown, some 14 times over, evaluated four times.

    Args:
        case: what is done to the text.
        seed: of weights, order and augmentation.
        steps: of 1,024 tokens.
        embedding: path of what `replace_nearest` compares.
    """
    nearest = any(text.startswith('replace_nearest') for text in case.augment)
    return lm.get_config(
        'brown',
        seed=seed,
        data={
            'train': 'data:brown/brown.txt[:6000w]',
            'valid': 'data:brown/brown.txt[800000w:810000w]',
            'test': '',
            'length': 64,
            'batch_size': 16,
            'augment': case.augment,
            'augment_embedding': embedding if nearest else '',
        },
        tokenizer={'kind': case.kind, 'vocab_size': 512},
        model={'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'dropout': case.dropout},
        schedule={'warmup_steps': steps // 10},
        train={'steps': steps, 'eval_every': steps // 4},
        checkpoint={'every': 0},
        eval={'stride': 0},
        generate={'prompts': ()},
        log={'tensorboard': False},
    )
