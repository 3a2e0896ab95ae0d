"""The operating system: terminal and signals, logging, memory of this process, removal of secrets from texts."""
