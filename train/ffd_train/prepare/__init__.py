"""From folders of raw pictures to a packed data set: what ffd-data prepare does."""
