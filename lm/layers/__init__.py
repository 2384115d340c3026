"""The parts of a Transformer layer: pure mathematics, and thin Linen modules around it."""
