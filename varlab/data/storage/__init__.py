"""Where the files of a shard set lie: a folder, or a URL whose files are fetched into a cache."""
