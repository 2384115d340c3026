import pytest

from lm import config as configs
from lm.data import corpus


@pytest.fixture
def options():
    """Returns the typed options of the base config, with changes."""
    from lm.data.corpus.options import Options

    def parsed(**changes):
        changes = {key: value for key, value in changes.items() if value}
        config = corpus.get_config('base', **{'sources': ('a=text:nothing',), **changes})
        return configs.typed(Options, config.to_dict())

    return parsed
