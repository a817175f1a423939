"""Run ffd-run on a Ray cluster, with images and rows in an object store or shared folders."""
