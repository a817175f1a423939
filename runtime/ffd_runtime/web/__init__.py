"""Serve a page with live pictures, labels, health and metrics over HTTP."""
