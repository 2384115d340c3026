"""Experiment configs. `base.py` lists every key; the others state only what differs."""
