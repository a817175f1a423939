"""Images: headers, decoding, preprocessing, faces, drawing."""
