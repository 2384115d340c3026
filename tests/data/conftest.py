"""What the tests of the host side share."""

import dataclasses

import pytest

from configs import base
from lm import config
from lm.data import source


@pytest.fixture
def config_data(tmp_path):
    """The data config's defaults, with a cache of the test's own."""
    data = config.parse(base.get_config()).data
    return dataclasses.replace(data, cache_dir=str(tmp_path / 'cache'), workers=1)


@pytest.fixture
def shared():
    """The folder of the development data."""
    folder = source.data_dir()
    if not folder.is_dir():
        pytest.skip('needs the development data in $LM_DATA_DIR')
    return folder
