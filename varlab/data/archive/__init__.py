"""Read tars of any writer to their end: headers, members, links, and what lies beside the samples."""
