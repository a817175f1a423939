"""What each image format says about itself, read without decoding it."""
