"""One module per pipeline step: read inputs, call functions below, log outputs."""
