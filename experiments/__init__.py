"""Questions answered by runs: one folder each, with the command and the result in its README."""
