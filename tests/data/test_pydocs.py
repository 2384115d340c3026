import re

import pytest

from lm.data import pydocs
from lm.errors import InputError

# The standard library is parsed once.
pytestmark = pytest.mark.slow


def test_splits_are_disjoint_and_everything():
    parts = {split: list(pydocs.documents(split)) for split in pydocs.SPLITS}
    everything = parts.pop('')
    assert sorted(sum(parts.values(), [])) == sorted(everything)
    assert len(set(everything)) == len(everything)
    sizes = {split: sum(map(len, texts)) for split, texts in parts.items()}
    total = sum(sizes.values())
    assert total > 1_000_000
    assert sizes['train'] > 0.8 * total
    assert min(sizes['valid'], sizes['test']) > 0.02 * total


def test_reads_like_documentation():
    text = '\n'.join(pydocs.documents(''))
    assert 'The "while" statement is used for repeated execution' in text
    assert 'Wrap a single paragraph of text' in text
    assert not re.search(r'^([=*~^-])\1+$', text, re.MULTILINE)
    assert '\n\n\n' not in text
    assert text.count('Wrap a single paragraph of text') < 4


def test_identity_is_stable():
    assert pydocs.identity() == pydocs.identity()


def test_unknown_split():
    with pytest.raises(InputError, match="Did you mean 'train'"):
        list(pydocs.documents('trian'))
