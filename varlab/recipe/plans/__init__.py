"""The planners: a configuration of ``conf/task`` → a ``Plan``. The YAML names its planner; a new one can be anywhere."""
