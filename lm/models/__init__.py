"""Whole models, built from one block."""
