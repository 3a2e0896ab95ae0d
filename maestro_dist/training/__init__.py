"""The work of one worker: it builds the model and its data, trains and validates."""
