"""From raw images to batches: sources, shards on the disk, the order of an epoch, loaders and views."""
