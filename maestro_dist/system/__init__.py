"""Close to the operating system: terminal and signals, memory of this process, secrets kept out of texts."""
