"""The one exception that is meant for people."""


class VarlabError(Exception):
    """Something a person can mend. Its text is one sentence: what was wrong, where, what to do."""
