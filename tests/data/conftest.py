"""What the tests of the host side share."""

import dataclasses

import pytest

from configs import base
from lm import config


@pytest.fixture
def config_data(tmp_path):
    """The data config's defaults, with a cache of the test's own."""
    data = config.parse(base.get_config()).data
    return dataclasses.replace(data, cache_dir=str(tmp_path / 'cache'), workers=1)
