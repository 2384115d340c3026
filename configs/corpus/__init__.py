"""Configs of `python -m lm.corpus`: from raw text to a corpus to train on."""
