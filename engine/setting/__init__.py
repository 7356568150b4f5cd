"""Setting: files in which a study hands over a setting to use, and what differs here. Never imports plan or streaming."""
