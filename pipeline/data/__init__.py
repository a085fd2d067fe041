"""Images: from any source into shards with an index, and from shards, in any order, to whoever asks."""
