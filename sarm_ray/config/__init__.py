"""One command = one frozen config: what each command takes, and how it is read from YAML and flags."""
