"""Read the headers of image formats without decoding them."""
