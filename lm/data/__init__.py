"""The host side: sources of text, tokenized once, packed into batches. numpy only, never jax."""
