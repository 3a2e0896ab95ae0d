"""Ranks: their grid (`mesh`), the process group (`group`), and DeepSpeed (`settings`, `engine`, `partition`)."""
