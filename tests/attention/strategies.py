"""Random masks, for tests of what must hold for all of them."""

from hypothesis import strategies as st

from lm.attention import masks

SMALL = st.integers(1, 40)
ATOMS = st.one_of(
    st.sampled_from([masks.causal, masks.full]),
    st.builds(masks.window, SMALL),
    st.builds(masks.strided, SMALL),
    st.builds(masks.chunks, SMALL),
    st.tuples(SMALL, SMALL).map(lambda p: masks.summaries(max(p), min(p))),
    st.builds(masks.global_tokens, SMALL),
    st.builds(masks.random_blocks, st.integers(1, 3), st.integers(0, 9), st.integers(1, 20)),
)
MASKS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=4,
)
