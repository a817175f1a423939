"""ffd-data prepare: pack folders of images into a data set of shards."""
