"""Serve a page with live images, labels, health and metrics over HTTP."""
