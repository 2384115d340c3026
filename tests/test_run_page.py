"""The bar and the table of goodput."""

import re

import pytest

from lm import goodput, run_page


def test_a_bar_is_as_long_as_its_parts():
    bar = run_page.stacked([('a <b>', 30.0), ('c', 10.0)])
    found = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)" height="4" fill="(\S+)"', bar)
    assert found == [('0.000', '75.000', 'var(--c0)'), ('75.000', '25.000', 'var(--c1)')]
    assert 'a &lt;b&gt; 75.0 %' in bar


def test_all_parts_look_different():
    bar = run_page.stacked([(label, 1.0) for label in goodput.PARTS.values()])
    looks = re.findall(r'height="4" (fill="\S+" opacity="\S+")', bar)
    assert len(set(looks)) == len(looks) == len(goodput.PARTS)


@pytest.mark.parametrize(
    ('scale', 'head', 'cells'),
    [(1, 'seconds', ['60.0', '15.0', '75.0']), (100, 'time', ['1:40:00', '25:00', '2:05:00'])],
)
def test_rows(scale, head, cells):
    parts = {'training': 60.0 * scale, 'downtime': 15.0 * scale}
    found = {'seconds': 75.0 * scale, 'share': 0.8, 'starts': 2, 'parts': parts}
    columns, rows = run_page.goodput_rows(found)
    assert columns == ['part', head, 'share']
    assert [row[1] for row in rows] == cells
    assert [row[2] for row in rows] == ['80.0 %', '20.0 %', '100.0 %']


def test_reports_from_before_have_no_such_sections():
    assert run_page.markdown({}) == run_page.html({}) == {}
