"""Image folders, shards and digits: decoding, splits, transforms, batches."""
