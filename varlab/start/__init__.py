"""``varlab start``: a plan in minutes, and the ordinary commands that carry it out."""
