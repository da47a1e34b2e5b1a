"""The command line: argv and YAML in, a stage run and an exit code out."""
