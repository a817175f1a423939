"""Images: headers, decoding, preprocessing, face detection and drawing."""
