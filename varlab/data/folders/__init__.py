"""What the folders, files and names of a data set mean to their owner."""
