"""Read cameras, network streams and video files, classify their frames, show and record them."""
