"""A production line: cameras, engine, judging rules and sinks in one process, described by one TOML file."""
