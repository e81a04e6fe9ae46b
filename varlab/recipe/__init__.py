"""From a configuration to live objects: tasks, data, parents, budgets."""
