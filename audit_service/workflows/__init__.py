"""The work that the command line, background jobs, reports and pages share; nothing here parses or prints."""
