"""Jobs that somebody schedules: each chains several verbs and runs as `python -m pipelines.NAME CONFIG`."""
