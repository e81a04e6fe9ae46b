"""What can be refused before torch is imported: checks of a command's configuration, and of the files that it names."""
