"""ffd-run over a Ray cluster: pictures and rows in an object store, the same code for each."""
