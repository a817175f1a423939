"""What a data set gives away besides faces, measured before a network learns it."""
