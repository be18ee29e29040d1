"""The work that verbs, jobs, reports and pages share; nothing here reads a command line or prints."""
