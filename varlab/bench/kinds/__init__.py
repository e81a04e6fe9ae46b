"""The kinds of work that ``varlab bench`` measures: one file each, named by its ``conf/what/*.yaml``."""
