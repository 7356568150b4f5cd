"""Doctor: tries every meter and system call once, and times the disk and the host; never needs a model or a study."""
