"""Best: the recommended settings of a study as files and commands. Never imports what runs or shows a study."""
