"""System: what the operating system provides and reports: files, memory, page cache, heat and power, child processes.

Imports only `engine.errors`.
"""
