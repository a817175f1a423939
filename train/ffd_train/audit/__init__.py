"""Audits of a data set: cues other than the faces that separate the classes."""
