"""Cameras, servers and video files: sources that give frames, and what is done with them."""
